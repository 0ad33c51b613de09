"""What a product of few levels lacks of the exact one, as far as a product of low rank can say it.

A draft only proposes tokens, so a correction is kept in 8 bits (how one is fitted: tuning/fit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, I8, Kernels


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Adds (x @ inward.T * scales) @ outward.T to a product x @ weight.T.

    inward: int8 [rank, cols]; outward: int8 [rank, rows]; scales: float32 [rank]. gains: float32 [rank], never rising:
    what each component spares of the product's squared error, as a share of the exact product's square.
    """

    inward: I8
    outward: I8
    scales: F32
    gains: F32

    @property
    def rank(self) -> int:
        return len(self.scales)

    @property
    def component_nbytes(self) -> int:
        """What each component takes."""
        return int(self.inward.shape[1] + self.outward.shape[1] + 8)

    @property
    def nbytes(self) -> int:
        return self.rank * self.component_nbytes

    def first(self, rank: int) -> Correction:
        """Its first components, in memory of their own."""
        return Correction(*(part[:rank].copy() for part in (self.inward, self.outward, self.scales, self.gains)))

    def add_to(self, kernels: Kernels, x: F32, out: F32) -> None:
        """Add it to out[n, rows], the product of x[n, cols]."""
        t = np.empty((len(x), self.rank), np.float32)
        kernels.matmul(x, self.inward.astype(np.float32).reshape(-1).view(np.uint8), "F32", t)
        t *= self.scales
        kernels.add_levels(t, self.outward, out)
