"""What a product of few levels lacks of the exact one, as far as a product of low rank can say it.

A draft only proposes tokens, so a correction is kept in 8 bits (how one is fitted: tuning/fit.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, I8, Kernels

SCALE_BYTES = 4


def component_bytes(rows: int, cols: int) -> int:
    """What a component takes of a correction of so many rows and columns."""
    return rows + cols + SCALE_BYTES


@dataclass(frozen=True, slots=True)
class Components:
    """Of the corrections of several matrices together: how many the longest has, and bytes of each."""

    rank: int
    nbytes: int

    @classmethod
    def of(cls, corrections: Mapping[str, Correction]) -> Components:
        rank = max((correction.rank for correction in corrections.values()), default=0)
        return cls(rank, -(-sum(correction.nbytes for correction in corrections.values()) // max(1, rank)))


NO_COMPONENTS = Components(0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Adds (x @ inward.T * scales) @ outward.T to a product x @ weight.T.

    inward: int8 [rank, cols]; outward: int8 [rank, rows]; scales: float32 [rank]. The components that bring most come
    first.
    """

    inward: I8
    outward: I8
    scales: F32

    @property
    def rank(self) -> int:
        return len(self.scales)

    @property
    def nbytes(self) -> int:
        return self.rank * component_bytes(self.outward.shape[1], self.inward.shape[1])

    def first(self, rank: int) -> Correction:
        """Its first components, in memory of their own."""
        return Correction(*(part[:rank].copy() for part in (self.inward, self.outward, self.scales)))

    def of_rows(self, rows: slice) -> Correction:
        """What it adds to these rows of the matrix."""
        return Correction(self.inward, np.ascontiguousarray(self.outward[:, rows]), self.scales)

    def add_to(self, kernels: Kernels, x: F32, out: F32) -> None:
        """Add it to out[n, rows], the product of x[n, cols]."""
        t = np.empty((len(x), self.rank), np.float32)
        kernels.matmul(x, self.inward.astype(np.float32).reshape(-1).view(np.uint8), "F32", t)
        t *= self.scales
        kernels.add_levels(t, self.outward, out)
