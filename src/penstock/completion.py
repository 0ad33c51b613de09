"""A sequence as text: tokens become pieces of text, stop strings end it, and its costs are added up."""

from __future__ import annotations

import reprlib
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING
from weakref import WeakMethod

from penstock.speculate.speculator import Record
from penstock.text.text_stream import StopStrings, TextStream

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence as List

    from penstock.engine.sequence import Sequence
    from penstock.errors import PenstockError
    from penstock.logprobs import TokenLogprobs
    from penstock.models.pass_stats import PartStats, PassStats, PassTotals
    from penstock.text.tokenizer import Tokenizer

CONTEXT = 16
"""Tokens of a prompt that tell how the text behind it begins: more than the spaces that decoders strip."""

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlist = 80, 6


def _short(value: object, **shown: object) -> str:
    """A representation that fits into a few lines, however much was said: what a prompt or a debugger shows."""
    fields = ", ".join(f"{name}={_SHORT.repr(field)}" for name, field in shown.items())
    return f"{type(value).__name__}({fields})"


@dataclass(slots=True)
class Stats:
    """What one output took. A pass that several prompts shared counts whole for each of them."""

    prompt_tokens: int
    seed: int
    """Of the noise: with it and the same prompt and parameters, the same tokens come again."""
    cached_tokens: int = 0
    """Of the prompt: those whose keys and values were there, in memory or in the prefix cache."""
    tokens: int = 0
    """Tokens drawn, a stop token included."""
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    log: list[PassTotals] = field(default_factory=list)
    """Every pass that this took part in."""
    parts: tuple[PartStats, ...] = ()
    """Of the latest pass."""
    guesses: Record = field(default_factory=Record)
    """What became of guesses at its tokens."""

    def __repr__(self) -> str:
        names = ("prompt_tokens", "tokens", "passes", "seconds", "first_token_seconds", "bytes_read", "seed")
        return _short(self, **{name: getattr(self, name) for name in names})

    @property
    def passes(self) -> int:
        return len(self.log)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens drawn a pass, over the passes that drew any (prefill in several chunks has some that draw none)."""
        return self.tokens / max(1, sum(totals.logits for totals in self.log))

    @property
    def bytes_read(self) -> int:
        """Bytes of streamed weights, over all passes."""
        return sum(totals.bytes_read for totals in self.log)

    @property
    def draft_seconds(self) -> float:
        """Seconds of guessing, over all passes."""
        return sum(totals.draft_seconds for totals in self.log)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one pass added to a stream. `text` may be empty while a character or a stop string is incomplete."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    stats: Stats
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of its tokens, where they were asked for."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return _short(self, text=self.text, token_ids=self.token_ids, finish_reason=self.finish_reason)


@dataclass(frozen=True, slots=True)
class Output:
    """A finished completion; `token_ids` without the prompt and the stop token. Printing it shows its text."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of its tokens, where they were asked for."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        shown = _short(self, text=self.text, token_ids=self.token_ids, finish_reason=self.finish_reason)
        return f"{shown[:-1]}, stats={self.stats!r})"


class Completion:
    """One sequence with its text, kept up to date by the engine's passes, whoever asked for them."""

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: Tokenizer | None,
        stops: List[str] = (),
        shown: Collection[int] = (),
        *,
        continues: bool = False,
    ) -> None:
        """`shown`: special tokens that are a part of the text. `continues`: the text goes on with the prompt's, and
        does not begin anew, as the answer in a chat does: a space that it begins with is a part of it then, whatever
        the tokenizer does at the beginning of a text."""
        self.sequence = sequence
        self.stats = Stats(len(sequence.prompt), sequence.sampler.seed, guesses=sequence.guesses)
        self.pieces: deque[Piece] = deque()
        """What the passes brought that nobody has taken yet."""
        self._text: TextStream | None = None
        if tokenizer is not None:
            self._text = _Continued(tokenizer, shown, sequence.prompt) if continues else TextStream(tokenizer, shown)
        self._stops = StopStrings(stops)
        self._begin = time.perf_counter()
        self._taken = 0
        self._parts: list[str] = []
        self._told_logprobs = 0
        weakly = WeakMethod(self._take)  # so that both are gone as soon as nobody has this any more

        def after_pass(stats: PassStats) -> None:
            if (take := weakly()) is not None:
                take(stats)

        sequence.after_pass = after_pass
        if sequence.token_ids or not self.runs:
            self._add(self._new_text())  # what an earlier run drew is the first piece

    @property
    def runs(self) -> bool:
        return self.sequence.finish_reason is None

    @property
    def error(self) -> PenstockError | None:
        """Why it could not go on."""
        return self.sequence.error

    def output(self) -> Output:
        """The finished completion."""
        sequence = self.sequence
        reason = sequence.finish_reason or "length"
        return Output("".join(self._parts), sequence.token_ids, reason, self.stats, sequence.logprobs)

    def _take(self, stats: PassStats) -> None:
        """Take in what a pass drew; ends the sequence at a stop string."""
        sequence, taken = self.sequence, self._taken
        ended_by_token = sequence.finish_reason == "stop"
        text = self._new_text()
        drawn = self._taken - taken
        self._count(stats, drawn=drawn + (ended_by_token and self._stops.met is None))
        self._add(text, taken)

    def _new_text(self) -> str:
        """The text of the tokens that have come since it was last asked for."""
        text = self._push(self.sequence.token_ids[self._taken :])
        self._taken = len(self.sequence.token_ids)
        return text + self._end()

    def _add(self, text: str, taken: int = 0) -> None:
        """A piece of the tokens from number `taken` on, whose text is `text`."""
        sequence = self.sequence
        new, logprobs = sequence.token_ids[taken:], sequence.logprobs[self._told_logprobs :]
        self._told_logprobs = len(sequence.logprobs)
        self._parts.append(text)
        if new or sequence.finish_reason is not None:
            self.pieces.append(Piece(text, new, sequence.finish_reason, self.stats, logprobs))

    def _push(self, tokens: list[int]) -> str:
        """The text of new tokens; what follows a stop string is taken back, as if it had never been drawn."""
        if self._text is None:
            return ""
        parts = []
        for count, token in enumerate(tokens, self._taken + 1):
            parts.append(self._stops.push(self._text.push(token)))
            if self._stops.met is not None:
                cut = len(self.sequence.token_ids) - count
                del self.sequence.token_ids[count:]
                del self.sequence.logprobs[len(self.sequence.logprobs) - cut :]
                self.sequence.finish_reason = "stop"
                break
        return "".join(parts)

    def _end(self) -> str:
        """What was held back, if the sequence has ended."""
        if self._text is None or self.sequence.finish_reason is None:
            return ""
        text = self._stops.push(self._text.finish()) + self._stops.finish()
        if self._stops.met is not None:
            self.sequence.finish_reason = "stop"
        return text

    def _count(self, stats: PassStats, drawn: int) -> None:
        self.stats.log.append(stats.totals())
        self.stats.parts = stats.parts
        self.stats.cached_tokens = self.sequence.cached_tokens
        self.stats.seconds = time.perf_counter() - self._begin
        if drawn and not self.stats.tokens:
            self.stats.first_token_seconds = self.stats.seconds
        self.stats.tokens += drawn


class _Continued(TextStream):
    """Goes on with a prompt's text, whose last tokens it decodes its own behind."""

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int], prompt: List[int]) -> None:
        super().__init__(tokenizer, shown)
        self._known = ""
        """Text of the prompt's that is held back: told where the answer changes it, as it does half a character."""
        plain = (token for token in reversed(prompt) if token not in tokenizer.special_ids)
        context = [*islice(plain, CONTEXT)][::-1]
        told = "".join([self.push(token) for token in context])
        self._known = tokenizer.decode(context)[len(told) :]

    def push(self, token_id: int) -> str:
        return self._new(super().push(token_id))

    def finish(self) -> str:
        return self._new(super().finish())

    def _new(self, text: str) -> str:
        if not text:
            return ""
        known, self._known = self._known, ""
        return text.removeprefix(known)
