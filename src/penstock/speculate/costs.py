"""What passes and drafts take, measured as they run, so that a guess can be weighed against its price.

A pass takes the disk's time or the arithmetic's, whichever is longer; the arithmetic grows with the rows, and where a
model has experts, so does what is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.architectures.base import Architecture
    from penstock.models.pass_stats import PassStats

FADING, DISK_FADING = 0.9, 0.3
SHARPNESS = 8
"""Of the maximum of disk and arithmetic: where they are nearly equal, a pass takes longer than either."""
DISK_BOUND = 0.9
"""A pass that computes for less than this share of its time was waiting for the disk."""
MOST_SHARE = 0.5
"""Of the time of passes that all have about as many rows: what is put down to the rows, at most."""
EXPERTS_SHARE = 0.9
"""Of the bytes that such passes read: what is put down to their experts, where there are some."""
GUESS_FLOPS = 5e10
"""Floating-point operations a second, before any pass of several rows was measured: few, to be careful."""


@dataclass(slots=True)
class Line:
    """Seconds as a + b * rows, by least squares with fading weights; `b` is what `slope` says until rows differ."""

    slope: float
    most_share: float = MOST_SHARE
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, rows: float, seconds: float) -> None:
        # In proportion to the seconds, since passes of many rows must not drown those of few.
        weight = 1 / max(seconds, 1e-9) ** 2
        moments = weight, weight * rows, weight * seconds, weight * rows * rows, weight * rows * seconds
        self._n, self._x, self._y, self._xx, self._xy = (
            old * FADING + new
            for old, new in zip((self._n, self._x, self._y, self._xx, self._xy), moments, strict=True)
        )

    def __call__(self, rows: float) -> float:
        """Seconds that so many rows are expected to take; 0 before anything was measured."""
        if not self._n:
            return 0.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        variance = self._xx / self._n - mean_x**2
        slope = min(self.slope, self.most_share * mean_y / mean_x)
        if variance > 0.05 * mean_x**2:
            slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / variance)
        return max(0.0, mean_y + slope * (rows - mean_x))

    @property
    def known(self) -> bool:
        return self._n > 0


@dataclass(slots=True)
class Costs:
    """Of one model and its drafters."""

    weights: int
    """How many a row is multiplied with."""
    expert_share: Callable[[float], float] | None = None
    """Which part of the experts so many rows need; None where there are none."""
    disk_seconds: float = 0.0
    """Of a pass of few rows."""
    disk_bound: bool = False
    """Whether the last pass was waiting for the disk."""
    free_seconds: float = 0.0
    """Of one question to the free drafters."""
    _warm: bool = False
    _compute: Line = field(init=False)
    _experts: Line = field(init=False)
    """Seconds of reading, by the share of the experts."""
    _drafts: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compute = Line(2 * self.weights / GUESS_FLOPS)
        self._experts = Line(math.inf, EXPERTS_SHARE)

    @classmethod
    def of(cls, architecture: Architecture) -> Costs:
        """Of a model that is opened."""
        share = None if architecture.config.experts is None else architecture.expert_share
        return cls(architecture.weights_per_row, share)

    def learn_cold_pass(self, stats: PassStats, streamed: int) -> None:
        """Take in a pass that brought weights into memory, after which the next ones will read `streamed` bytes.

        It counts until others are known, if they stream at all.
        """
        if self._warm or not streamed:
            return
        seconds = stats.seconds - stats.draft_seconds
        self._compute.add(stats.rows, seconds - _streaming_wait(stats))
        self.disk_seconds = seconds * streamed / max(stats.bytes_read, streamed)

    def learn_pass(self, stats: PassStats) -> None:
        """Take in any other pass."""
        seconds = stats.seconds - stats.draft_seconds
        if not self._warm:
            self._compute, self.disk_seconds, self._warm = Line(self._compute.slope), 0.0, True
        compute = seconds - _streaming_wait(stats)
        self._compute.add(stats.rows, compute)
        self.disk_bound = compute < DISK_BOUND * seconds
        if self.disk_bound and self.expert_share is not None:
            self._experts.add(self.expert_share(stats.rows), seconds)
        if self.disk_bound:
            self.disk_seconds += (seconds - self.disk_seconds) * (DISK_FADING if self.disk_seconds else 1)
        else:
            self.disk_seconds = min(self.disk_seconds, seconds) if stats.bytes_read else 0.0

    @property
    def known(self) -> bool:
        """Whether anything is known of a pass's time."""
        return self._compute.known

    def pass_seconds(self, rows: float) -> float:
        """A pass of so many rows."""
        compute, disk = self._compute(rows), self._disk(rows)
        slower = max(compute, disk)
        if not slower:
            return 0.0
        faster = min(compute, disk)
        return float(slower * (1 + (faster / slower) ** SHARPNESS) ** (1 / SHARPNESS))

    def _disk(self, rows: float) -> float:
        if self.expert_share is None or not self.disk_seconds:
            return self.disk_seconds
        return self._experts(self.expert_share(rows)) if self._experts.known else self.disk_seconds

    def learn_draft(self, drafter: str, rows: int, seconds: float) -> None:
        self._draft(drafter).add(rows, seconds)

    def learn_free(self, nodes: int, seconds: float) -> None:
        """So many nodes were guessed without a drafter that takes time: next to none, but not nothing."""
        new = seconds / nodes
        self.free_seconds = FADING * self.free_seconds + (1 - FADING) * new if self.free_seconds else new

    def draft_seconds(self, drafter: str, rows: int) -> float:
        """One expansion of so many nodes; 0 before the first."""
        return self._draft(drafter)(rows)

    def _draft(self, drafter: str) -> Line:
        return self._drafts.setdefault(drafter, Line(0.0))


def _streaming_wait(stats: PassStats) -> float:
    """Seconds that a pass stood still for streamed weights; the embedding waits for rows of its own, the more of them
    the longer."""
    return sum(part.wait_seconds for part in stats.parts if part.bytes_read)
