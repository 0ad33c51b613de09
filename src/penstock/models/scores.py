"""How likely the head says given tokens are, and which would have been likelier: some numbers a row, not all logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.base import SCORED_AT_ONCE
from penstock.compute.log_sum_exp import LogSumExp

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, F64, I64


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n rows, each with a token whose logarithm of its probability was asked for."""

    logprobs: F64
    """[n], natural logarithms."""
    best: I64
    """[n]: the likeliest tokens, the lowest where several are."""
    peaks: F32
    """[n]: the greatest logits; NaN where one is."""
    top_tokens: I64
    """[n, top]: the likeliest, the likeliest first."""
    top_logprobs: F64
    """[n, top]."""

    def __getitem__(self, rows: slice) -> Scores:
        return Scores(
            self.logprobs[rows], self.best[rows], self.peaks[rows], self.top_tokens[rows], self.top_logprobs[rows]
        )

    def __len__(self) -> int:
        return len(self.logprobs)


class Scoring:
    """The scores of rows, as their logits come by."""

    def __init__(self, targets: I64, top: int) -> None:
        """`targets`: a token for each row; `top`: how many of the likeliest to tell."""
        self._targets, self._top = targets, top
        rows = len(targets)
        self._sums = LogSumExp(rows)
        self._logits = np.full(rows, np.nan, np.float32)
        """Of the targets."""
        self._best = np.zeros(rows, np.int64)
        self._peaks = np.full(rows, -np.inf, np.float32)
        self._top_tokens = np.zeros((rows, top), np.int64)
        self._top_logits = np.full((rows, top), -np.inf, np.float32)

    def groups(self) -> list[slice]:
        """All rows, as many at a time as `take` is to be given."""
        rows = len(self._targets)
        return [slice(begin, min(begin + SCORED_AT_ONCE, rows)) for begin in range(0, rows, SCORED_AT_ONCE)]

    def take(self, first: int, logits: F32, rows: slice) -> None:
        """Take in logits [n, m] of some rows, of tokens `first` and after, which follow those that came before."""
        with np.errstate(invalid="ignore"):  # what is not finite is told by the peaks
            self._sums.take(first, logits, rows)
        inside = (self._targets[rows] >= first) & (self._targets[rows] < first + logits.shape[1])
        here = np.flatnonzero(inside)
        self._logits[rows][here] = logits[here, self._targets[rows][here] - first]
        best = logits.argmax(axis=1)
        peaks = np.take_along_axis(logits, best[:, None], axis=1)[:, 0]
        better = (peaks > self._peaks[rows]) | np.isnan(peaks)
        self._best[rows] = np.where(better, best + first, self._best[rows])
        self._peaks[rows] = np.maximum(self._peaks[rows], peaks)
        if self._top:
            self._take_top(first, logits, rows)

    def _take_top(self, first: int, logits: F32, rows: slice) -> None:
        for row, own in enumerate(logits, rows.start):
            likely = likeliest(own, self._top)
            tokens = np.concatenate([self._top_tokens[row], likely + first])
            values = np.concatenate([self._top_logits[row], own[likely]])
            order = np.argsort(-values, kind="stable")[: self._top]
            self._top_tokens[row], self._top_logits[row] = tokens[order], values[order]

    def scores(self) -> Scores:
        """Of all that came by."""
        sums = self._sums.values()
        return Scores(self._logits - sums, self._best, self._peaks, self._top_tokens, self._top_logits - sums[:, None])


def likeliest(logits: F32, count: int) -> I64:
    """Indices of the `count` largest of a row [m], the largest first, and the lowest of equal ones."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]
