"""Texts and how likely a model finds them: `LLM.score`, perplexity."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import UsageError
from penstock.sampling import MOST_LOGPROBS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from penstock.compute.kernels import F64, I64
    from penstock.engine.engine import Engine
    from penstock.engine.scoring import ScoredSequence

    Text = str | Sequence[int]
    Scorable = Text | tuple[Text, Text]

MOST_NATS = 700
"""A token, beyond which exp is not a number any more."""
ROWS_AHEAD = 2 * MAX_ROWS
"""Rows of sequences that take part at a time: enough for each pass to be full."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds the tokens of a text, each after all those before it."""

    token_ids: list[int]
    """All of them."""
    start: int
    """The first of those that were scored; at least 1, since nothing comes before the very first."""
    logprobs: F64
    """[n - start]: natural logarithms of the probabilities of token_ids[start:]."""
    is_greedy: npt.NDArray[np.bool_]
    """[n - start]: whether each is the model's likeliest token there."""
    top_tokens: I64
    """[n - start, top]: the likeliest tokens there, the likeliest first."""
    top_logprobs: F64
    """[n - start, top]: theirs."""

    @property
    def total(self) -> float:
        """The logarithm of the probability of all that was scored."""
        return math.fsum(self.logprobs.tolist())

    @property
    def perplexity(self) -> float:
        """exp of minus the mean."""
        return perplexity_of([self], 0).perplexity

    @property
    def all_greedy(self) -> bool:
        """Whether greedy decoding after the first tokens gives all the others."""
        return bool(self.is_greedy.all())

    def __repr__(self) -> str:
        return f"Score({len(self.logprobs)} of {len(self.token_ids)} tokens, total={self.total:.6g})"


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model foresees texts."""

    perplexity: float
    """exp of the nats a token."""
    standard_error: float
    """Of the perplexity, with the tokens taken for independent draws: exp(mean) * deviation / sqrt(tokens)."""
    tokens: int
    """That were scored: all but the first of each text."""
    nats_per_token: float
    bits_per_byte: float | None
    """Of UTF-8 text, which does not depend on how it is divided into tokens; None where nothing has bytes."""
    bytes: int
    """Of the text that was scored."""


def perplexity_of(scores: Sequence[Score], nbytes: int) -> Perplexity:
    """Of texts that were scored, which have so many bytes together."""
    nats = -np.concatenate([score.logprobs for score in scores])
    n, total = len(nats), math.fsum(-score.total for score in scores)
    mean = total / n
    deviation = math.sqrt(math.fsum(((nats - mean) ** 2).tolist()) / (n - 1)) if n > 1 else math.inf
    value = _perplexity(mean)
    bits = total / math.log(2) / nbytes if nbytes > 0 else None
    return Perplexity(value, value * deviation / math.sqrt(n), n, mean, bits, nbytes)


def _perplexity(nats: float) -> float:
    """Of so many a token."""
    return math.exp(nats) if nats < MOST_NATS else math.inf


def tokens_of(text: Scorable, encode: Callable[[str], list[int]]) -> tuple[list[int], int]:
    """The tokens of what is to be scored, and the first of them that is: of a text or token ids all but the first; of a
    pair of them, a context and what follows it, the latter's.

    A pair of texts is divided as one, and tokens that begin in the context and end behind it are scored. Raises
    UsageError for a context without tokens, and for a pair of a text and token ids.
    """
    if not _is_pair(text):
        return (encode(text) if isinstance(text, str) else list(text)), 1  # type: ignore[arg-type]
    context, following = text[0], text[1]
    if isinstance(context, str) and isinstance(following, str):
        before, tokens = encode(context) if context else [], encode(context + following)
        start = next((at for at, pair in enumerate(zip(before, tokens, strict=False)) if pair[0] != pair[1]), None)
        start = min(len(before), len(tokens)) if start is None else start
    elif isinstance(context, str) or isinstance(following, str):
        raise UsageError("A pair to score has a text and token ids.", "Give two texts, or two lists of token ids.")
    else:
        tokens, start = [*context, *following], len(context)  # type: ignore[misc, arg-type]
    if not start:
        raise UsageError("What is to be scored follows nothing: its context has no tokens.", "Give some context.")
    return tokens, start


def _is_pair(text: Scorable) -> bool:
    return isinstance(text, tuple) and len(text) == 2 and not any(isinstance(part, (int, np.integer)) for part in text)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text that is scored at once."""

    begin: int
    end: int
    start: int
    """The first token that is scored there; those before it are what it follows."""


def windows(tokens: int, start: int, width: int, stride: int | None) -> Iterator[Window]:
    """Parts of a text of so many tokens that have each token from `start` on scored once, after as many tokens as fit:
    in the first window all, in each later one the next `stride`, after `width` - `stride` others at least.

    `width`: tokens of a window. Raises UsageError unless stride < width.
    """
    if stride is not None and not (isinstance(stride, int) and 1 <= stride < width):
        raise UsageError(
            f"stride={stride!r} is out of range: windows have {width} tokens.", f"Give a number from 1 to {width - 1}."
        )
    end = tokens if stride is None else min(width, tokens)
    if end > start:
        yield Window(0, end, start)
    while end < tokens and stride is not None:
        first, end = end, min(end + stride, tokens)
        if end > start:
            yield Window(max(0, end - width), end, max(first, start))


@dataclass(frozen=True, slots=True)
class ScoringProgress:
    """How far scoring is, after a pass."""

    scored: int
    """Tokens."""
    wanted: int
    nats: float
    """Minus the sum of the logarithms of their probabilities."""

    @property
    def perplexity(self) -> float | None:
        """Of those that are scored; None where none are."""
        return _perplexity(self.nats / self.scored) if self.scored else None


class Scorer:
    """Scores texts in passes that all of them share."""

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[tuple[list[int], int]],
        *,
        stride: int | None = None,
        top: int = 0,
        adapter: str | None = None,
    ) -> None:
        """`texts`: tokens, and the first of them to score. `stride`: of windows, for texts longer than the context.
        Raises as `Engine.check_scored` does, for any of them before one is begun, and UsageError for a stride or a top
        out of range."""
        if not (isinstance(top, int) and 0 <= top <= MOST_LOGPROBS):
            raise UsageError(f"top={top!r} is out of range.", f"Give a number from 0 to {MOST_LOGPROBS}.")
        self._engine, self._top, self._adapter = engine, top, adapter
        self.scores = [_empty(tokens, start, top) for tokens, start in texts]
        """Of each text; whole when `run` has ended."""
        self._waiting: deque[tuple[Score, Window]] = deque()
        for score in self.scores:
            if score.start >= len(score.token_ids):
                engine.check_scored(score.token_ids, score.start)
            for window in windows(len(score.token_ids), score.start, engine.context, stride):
                engine.check_scored(score.token_ids[window.begin : window.end], window.start - window.begin)
                self._waiting.append((score, window))
        self._running: list[tuple[Score, Window, ScoredSequence]] = []

    def run(self) -> Iterator[ScoringProgress]:
        """Run passes until all is scored, one with each item. Raises as `Engine.step` does, and the error of the first
        sequence that ends with one; ends the sequences with the iterator."""
        wanted, scored, nats = sum(len(score.logprobs) for score in self.scores), 0, 0.0
        try:
            while self._waiting or self._running:
                self._begin()
                self._engine.step()
                for score, window, sequence in self._ended():
                    own = _take(score, window, sequence)
                    scored, nats = scored + len(own), nats - float(own.sum())
                yield ScoringProgress(scored, wanted, nats)
        finally:
            for _, _, sequence in self._running:
                self._engine.cancel(sequence)

    def _begin(self) -> None:
        """Let as many take part as fill the next passes."""
        rows = sum(len(sequence.pending) for _, _, sequence in self._running)
        while self._waiting and rows < ROWS_AHEAD:
            score, window = self._waiting.popleft()
            tokens = score.token_ids[window.begin : window.end]
            sequence = self._engine.score(tokens, window.start - window.begin, self._top, self._adapter)
            self._running.append((score, window, sequence))
            rows += len(tokens)

    def _ended(self) -> list[tuple[Score, Window, ScoredSequence]]:
        """Those that run no more. Raises the error of one that ended with it."""
        ended = [running for running in self._running if running[2].finish_reason is not None]
        for _, _, sequence in ended:
            if sequence.error is not None:
                raise sequence.error
            self._engine.cancel(sequence)
        self._running = [running for running in self._running if running[2].finish_reason is None]
        return ended


def _empty(tokens: list[int], start: int, top: int) -> Score:
    n = max(0, len(tokens) - start)
    return Score(tokens, start, np.zeros(n), np.zeros(n, np.bool_), np.zeros((n, top), np.int64), np.zeros((n, top)))


def _take(score: Score, window: Window, sequence: ScoredSequence) -> F64:
    """Put what a window told of its tokens in its place; their logarithms."""
    own, at = sequence.scored, slice(window.start - score.start, window.end - score.start)
    score.logprobs[at], score.top_tokens[at], score.top_logprobs[at] = own.logprobs, own.top_tokens, own.top_logprobs
    score.is_greedy[at] = own.best == np.array(score.token_ids[window.start : window.end])
    return own.logprobs
