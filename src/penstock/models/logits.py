"""What the head says of a pass's rows: of some all logits, of others only which tokens are likeliest, or how likely
some token is (scores.py).

A greedy draw needs no more than the likeliest token. So a row that one is drawn from, as every guess's may be, takes
some bytes, where all logits of a vocabulary of 128,256 take half a megabyte.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.models.scores import Scores

if TYPE_CHECKING:
    import numpy.typing as npt

    from penstock.compute.kernels import F32, I64

LIKELIEST = 8
"""Tokens that are told of a row."""
ROWS, SLICE = 16, 4096
"""Rows, and logits of a row, that are ranked at a time, so that little is allocated."""
GROUP = 64
"""Logits of which the maximum is taken first."""


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of n rows.

    tokens: int64 [n, LIKELIEST or all], the likeliest first, which is the lowest where several are; shares: float32 of
    the same shape, their probabilities; peaks: float32 [n], the greatest logits, NaN where one is.
    """

    tokens: I64
    shares: F32
    peaks: F32

    @classmethod
    def of(cls, logits: F32) -> Likeliest:
        """Of rows of logits [n, vocab_size]."""
        ranking = Ranking(len(logits))
        for first in range(0, logits.shape[1], SLICE):
            ranking.take(first, logits[:, first : first + SLICE])
        return ranking.likeliest()

    def __getitem__(self, rows: slice) -> Likeliest:
        return Likeliest(self.tokens[rows], self.shares[rows], self.peaks[rows])

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Logits:
    """Of all rows whose logits are wanted."""

    whole: F32
    """[m, vocab_size]: of the rows that want all of them."""
    likeliest: Likeliest
    """Of those that want no more."""
    told: npt.NDArray[np.bool_]
    """Which rows these are."""
    scores: Scores | None = None
    """Of those that want no more than these."""
    scored: npt.NDArray[np.bool_] | None = None
    """Which rows these are."""

    @classmethod
    def none(cls, vocab_size: int) -> Logits:
        """Where no row wants any."""
        return cls(np.empty((0, vocab_size), np.float32), Ranking(0).likeliest(), np.zeros(0, np.bool_))

    def __len__(self) -> int:
        return len(self.told)

    def part(self, begin: int, end: int) -> Logits:
        """Of some rows beside each other."""
        told = self.told[begin:end]
        before, others = int(self.told[:begin].sum()), int(told.sum())
        scored = 0
        if self.scores is not None and self.scored is not None:
            scored, count = int(self.scored[:begin].sum()), int(self.scored[begin:end].sum())
            if count:  # what is scored wants nothing else
                return replace(Logits.none(0), scores=self.scores[scored : scored + count])
        whole = self.whole[begin - before - scored : end - before - scored - others]
        return Logits(whole, self.likeliest[before : before + others], told)

    def row(self, index: int) -> F32 | Likeliest:
        """All of one row, float32 [1, vocab_size], or its likeliest."""
        part = self.part(index, index + 1)
        return part.likeliest if self.told[index] else part.whole

    def ranked(self) -> Likeliest:
        """The likeliest of all rows."""
        if self.told.all():
            return self.likeliest
        of_whole = Likeliest.of(self.whole)
        if not self.told.any():
            return of_whole
        order = np.argsort(np.concatenate([np.flatnonzero(~self.told), np.flatnonzero(self.told)]))
        fields = ("tokens", "shares", "peaks")
        return Likeliest(*(np.concatenate([getattr(of_whole, f), getattr(self.likeliest, f)])[order] for f in fields))


@dataclass(slots=True)
class Ranking:
    """The likeliest tokens of `rows` rows, as their logits come by. Up to `gathered` logits are ranked together, since
    ranking the few of one piece takes as long as multiplying them."""

    rows: int
    gathered: int = 0
    _tokens: I64 = field(init=False)
    _logits: F32 = field(init=False)
    _peaks: F32 = field(init=False)
    _sums: F32 = field(init=False)
    """Of exp(logit - the greatest so far)."""
    _waiting: F32 = field(init=False)
    """[rows, m]: room for logits that are not ranked yet."""
    _first: int = 0
    """The first one's token."""
    _count: int = 0
    """How many they are, of each row."""

    def __post_init__(self) -> None:
        self._tokens = np.empty((self.rows, 0), np.int64)
        self._logits = np.empty((self.rows, 0), np.float32)
        self._peaks = np.full(self.rows, -np.inf, np.float32)
        self._sums = np.zeros(self.rows, np.float32)
        self._waiting = np.empty((self.rows, self.gathered // max(1, self.rows)), np.float32)

    def take(self, first: int, logits: F32) -> None:
        """Take in logits [rows, m] of tokens `first` and after, which follow those that came before."""
        count, room = logits.shape[1], self._waiting.shape[1]
        if self._count + count > room:
            self._rank_waiting()
        if count > room:
            self._rank(first, logits)
            return
        if not self._count:
            self._first = first
        self._waiting[:, self._count : self._count + count] = logits
        self._count += count

    def _rank_waiting(self) -> None:
        count, self._count = self._count, 0
        if count:
            self._rank(self._first, self._waiting[:, :count])

    def _rank(self, first: int, logits: F32) -> None:
        groups = [slice(begin, begin + ROWS) for begin in range(0, self.rows, ROWS)]
        indices = np.concatenate([_best_first(logits[rows], largest(logits[rows], LIKELIEST)) for rows in groups])
        tokens = np.concatenate([self._tokens, indices + first], axis=1)
        values = np.concatenate([self._logits, np.take_along_axis(logits, indices, axis=1)], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :LIKELIEST]
        self._tokens = np.take_along_axis(tokens, order, axis=1)
        self._logits = np.take_along_axis(values, order, axis=1)
        peaks = np.maximum(self._peaks, logits.max(axis=1))
        with np.errstate(invalid="ignore"):  # infinite ones are told by the peaks
            self._sums *= np.exp(self._peaks - peaks)
            for rows in groups:
                weights = logits[rows] - peaks[rows, None]
                self._sums[rows] += np.exp(weights, out=weights).sum(axis=1)
        self._peaks = peaks

    def likeliest(self) -> Likeliest:
        """Of all that came by."""
        self._rank_waiting()
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.exp(self._logits - self._peaks[:, None]) / self._sums[:, None]
        return Likeliest(self._tokens, shares, self._peaks)


def _best_first(logits: F32, indices: I64) -> I64:
    """The same indices of each row, but that its first is the lowest of those with the greatest logit."""
    best = logits.argmax(axis=1)[:, None]
    gives_way = indices == best
    gives_way[~gives_way.any(axis=1), -1] = True
    others = indices[~gives_way].reshape(len(indices), -1)
    return np.concatenate([best, others], axis=1)


def largest(rows: F32, count: int) -> I64:
    """Indices of the `count` largest of each row of float32 [n, m], the largest first: [n, min(count, m)]."""
    n, m = rows.shape
    groups = m // GROUP
    if groups <= count:
        return np.argsort(-rows, axis=1, kind="stable")[:, :count]
    # What is among the largest is in one of the groups with the largest maxima, or behind the last one. Members of a
    # group lie `groups` apart, so that maxima of neighbours are found side by side.
    whole = groups * GROUP
    maxima = rows[:, :whole].reshape(n, GROUP, groups).max(axis=1)
    best = np.argpartition(maxima, -count, axis=1)[:, -count:, None]
    inside = (best + groups * np.arange(GROUP)).reshape(n, -1)
    behind = np.broadcast_to(np.arange(whole, m), (n, m - whole))
    candidates = np.concatenate([inside, behind], axis=1)
    order = np.argsort(-np.take_along_axis(rows, candidates, axis=1), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(candidates, order, axis=1)
