"""What passes and drafts take, measured as they run, so that a guess can be weighed against its price.

A pass takes the disk's time or the arithmetic's, whichever is longer; the arithmetic grows with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.stage import PassStats

FADING = 0.9
SHARPNESS = 8
"""Of the maximum of disk and arithmetic: where they are nearly equal, a pass takes longer than either."""
DISK_BOUND = 0.9
"""A pass that computes for less than this share of its time was waiting for the disk."""
GUESS_FLOPS = 5e10
"""Floating-point operations a second, before any pass of several rows was measured: few, to be careful."""


@dataclass(slots=True)
class Line:
    """Seconds as a + b * rows, by least squares with fading weights; `b` is what `slope` says until rows differ."""

    slope: float
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
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
        slope = self.slope
        if variance > 0.05 * max(mean_x, 1.0) ** 2:
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
    disk_seconds: float = 0.0
    disk_bound: bool = False
    """Whether the last pass was waiting for the disk."""
    _compute: Line = field(init=False)
    _drafts: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compute = Line(2 * self.weights / GUESS_FLOPS)

    def learn_pass(self, stats: PassStats) -> None:
        """Take in a pass."""
        seconds = stats.stage_seconds
        compute = seconds - stats.totals().wait_seconds
        self._compute.add(stats.rows, compute)
        self.disk_bound = compute < DISK_BOUND * seconds
        if self.disk_bound:
            self.disk_seconds += (seconds - self.disk_seconds) * (1 - FADING if self.disk_seconds else 1)
        else:
            self.disk_seconds = min(self.disk_seconds, seconds)

    def pass_seconds(self, rows: float) -> float:
        """A pass of so many rows."""
        compute = self._compute(rows)
        slower = max(compute, self.disk_seconds)
        if not slower:
            return 0.0
        faster = min(compute, self.disk_seconds)
        return float(slower * (1 + (faster / slower) ** SHARPNESS) ** (1 / SHARPNESS))

    def learn_draft(self, drafter: str, rows: int, seconds: float) -> None:
        self._draft(drafter).add(rows, seconds)

    def draft_seconds(self, drafter: str, rows: int) -> float:
        """One expansion of so many nodes; 0 before the first."""
        return self._draft(drafter)(rows)

    def _draft(self, drafter: str) -> Line:
        return self._drafts.setdefault(drafter, Line(0.0))
