"""A sequence that is scored: how likely the model finds each of its tokens, instead of drawing more.

It takes part in passes as a prompt does, in chunks, beside others, and shares the keys and values of what it begins
with, as far as nothing there is to be scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.sequence import Sequence
from penstock.models.rows import SequenceRows
from penstock.models.scores import Scores
from penstock.sampling import check_finite

if TYPE_CHECKING:
    from penstock.models.logits import Logits
    from penstock.speculate.tree import Tree


@dataclass(eq=False)
class ScoredSequence(Sequence):
    """Its tokens are `prompt`; those from `start` on, which is at least 1, are scored."""

    start: int = 1
    scored: Scores = field(init=False)
    """Of tokens `start` and after; whole once this has ended."""

    def __post_init__(self) -> None:
        """Nothing is scored yet."""
        n, top = len(self.prompt) - self.start, self.top_logprobs or 0
        self.scored = Scores(
            np.full(n, np.nan),
            np.zeros(n, np.int64),
            np.zeros(n, np.float32),
            np.zeros((n, top), np.int64),
            np.zeros((n, top)),
        )

    @property
    def pending(self) -> list[int]:
        """What comes after the last token is not asked for."""
        return self.prompt[self.cache.length : -1]

    @property
    def adoptable(self) -> list[int]:
        """Logits are wanted from the token before the first that is scored on."""
        return self.prompt[: self.start]

    @property
    def told_bytes(self) -> int:
        scored = self.scored
        arrays = (scored.logprobs, scored.best, scored.peaks, scored.top_tokens, scored.top_logprobs)
        return sum(array.nbytes for array in arrays)

    @property
    def most_told_bytes(self) -> int:
        return self.told_bytes

    @property
    def scores(self) -> bool:
        return True

    def scored_rows(self, count: int) -> int:
        return count - self._unscored(count)

    def _unscored(self, count: int) -> int:
        """How many of the next tokens come before those that tell of one that is scored."""
        return min(count, max(0, self.start - 1 - self.cache.length))

    def rows(self, tokens: list[int], tree: Tree | None, last: bool) -> SequenceRows:
        """What it adds to a pass: the next of its pending tokens."""
        count, done = len(tokens), self.cache.length
        first = self._unscored(count)
        targets = self.prompt[done + first + 1 : done + count + 1]
        return SequenceRows.plain(self.cache, tokens, range(first, count)).scoring(targets, self.top_logprobs or 0)

    @property
    def may_guess(self) -> bool:
        return False

    def take(self, logits: Logits) -> None:
        """Take the scores of the rows that a pass has computed, before they are committed."""
        if (scores := logits.scores) is None:  # all of them were of the context
            return
        first = max(0, self.cache.length - (self.start - 1))
        for row, peak in enumerate(scores.peaks.tolist(), self.start + first):
            check_finite(peak, row)
        end, own = first + len(scores), self.scored
        own.logprobs[first:end], own.best[first:end], own.peaks[first:end] = scores.logprobs, scores.best, scores.peaks
        top = own.top_tokens.shape[1]
        own.top_tokens[first:end] = scores.top_tokens[:, :top]
        own.top_logprobs[first:end] = scores.top_logprobs[:, :top]
        if end == len(own):
            self.finish_reason = "length"
