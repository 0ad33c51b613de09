"""A generation as text: tokens become pieces of text, stop strings end it, and its costs are added up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.errors import TokenizerError
from penstock.text_stream import StopStrings, TextStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.engine import Generation
    from penstock.stage import PassStats
    from penstock.tokenizer import Tokenizer


@dataclass(slots=True)
class Stats:
    """What one output took. A pass that several prompts shared counts whole for each of them."""

    prompt_tokens: int
    seed: int
    """Of the noise: with it and the same prompt and parameters, the same tokens come again."""
    tokens: int = 0
    """Tokens drawn, a stop token included."""
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    log: list[PassStats] = field(default_factory=list)

    @property
    def passes(self) -> int:
        return len(self.log)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens drawn a pass, over the passes that drew any (prefill in several chunks has some that draw none)."""
        return self.tokens / max(1, sum(1 for stats in self.log if stats.parts[-1].name == "head"))

    @property
    def bytes_read(self) -> int:
        """Bytes of streamed weights, over all passes."""
        return sum(stats.bytes_read for stats in self.log)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one pass added to a stream. `text` may be empty while a character or a stop string is incomplete."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stats: Stats


@dataclass(frozen=True, slots=True)
class Output:
    """A finished completion; `token_ids` without the prompt and the stop token."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


class Completion:
    """One generation with its text."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer | None, stops: Sequence[str] = ()) -> None:
        """Raises TokenizerError where stop strings are given and there is no tokenizer to make text."""
        if stops and tokenizer is None:
            raise TokenizerError(
                "Stop strings need text, and this checkpoint has no tokenizer.", "Put its tokenizer.json beside it."
            )
        self.generation = generation
        self.stats = Stats(len(generation.prompt), generation.sampler.seed)
        self._text = TextStream(tokenizer) if tokenizer is not None else None
        self._stops = StopStrings(stops)
        self._begin = time.perf_counter()
        self._shown = 0
        self._parts: list[str] = []

    @property
    def runs(self) -> bool:
        return self.generation.finish_reason is None

    def advance(self, stats: PassStats) -> Piece:
        """Take in what the generation drew in a pass; sets its finish_reason at a stop string."""
        generation = self.generation
        new = generation.token_ids[self._shown :]
        self._shown += len(new)
        self._count(stats, drawn=len(new) + (generation.finish_reason == "stop"))
        text = self._new_text(new)
        self._parts.append(text)
        return Piece(text, new, generation.finish_reason, self.stats)

    def output(self, finish_reason: str | None = None) -> Output:
        """The finished completion, or what there is of it, ended for the given reason."""
        reason = self.generation.finish_reason or finish_reason or "stop"
        return Output("".join(self._parts), self.generation.token_ids, reason, self.stats)

    def _new_text(self, tokens: list[int]) -> str:
        if self._text is None:
            return ""
        text = "".join(self._stops.push(self._text.push(token)) for token in tokens)
        if self.generation.finish_reason is not None:
            text += self._stops.push(self._text.finish()) + self._stops.finish()
        if self._stops.met is not None:
            self.generation.finish_reason = "stop"
        return text

    def _count(self, stats: PassStats, drawn: int) -> None:
        self.stats.log.append(stats)
        self.stats.seconds = time.perf_counter() - self._begin
        if drawn and not self.stats.tokens:
            self.stats.first_token_seconds = self.stats.seconds
        self.stats.tokens += drawn
