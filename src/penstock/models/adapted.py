"""What adapters add to the products of a pass, each to the rows of its own sequences.

Of a matrix with product y = W x + b, which is there first: t = A x, then d = B t, both by the kernel that all products
are made with, then y + s d, the product rounded before the sum. A row's bits depend on nothing but the row.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.base import GATHERED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.adapters.adapter import LowRank
    from penstock.compute.kernels import F32, I32, I64, Kernels
    from penstock.models.rows import RowIndex, Rows


@dataclass(frozen=True, slots=True)
class Addend:
    """What one adapter adds to one product, as far as it is computed."""

    low_rank: LowRank
    at: RowIndex
    t: F32
    """A x of its rows, [n, rank]."""

    def add_to(self, kernels: Kernels, out: F32, columns: slice) -> None:
        """Add it to columns of the product, out[rows of the pass, len(columns)]."""
        low_rank, count = self.low_rank, len(self.t)
        d = np.empty((count, out.shape[1]), np.float32)
        kernels.matmul(self.t, low_rank.rows_of_b(columns), low_rank.b_dtype, d)
        factors = np.full(count, low_rank.scale, np.float32)
        if isinstance(self.at, slice):
            kernels.add_rows(d, factors, out[self.at])
        else:
            kernels.add_rows(d, factors, out, self.at)


class AdaptedRows:
    """The rows of a pass that go through adapters."""

    def __init__(self, rows: Rows, adapters: Mapping[str, Mapping[str, LowRank]], kernels: Kernels) -> None:
        """`adapters`: by name, what each has for which matrix."""
        self._kernels = kernels
        self._parts = [(adapters[name], at) for name, at in rows.by_adapter().items()]

    def of(self, rows: I64) -> AdaptedRows:
        """As it is where only some of the pass's rows, ascending, are multiplied."""
        if not self._parts:
            return self
        some = copy(self)
        some._parts = [(matrices, own) for matrices, at in self._parts if len(own := _places(rows, at))]
        return some

    def addends(self, name: str, x: F32) -> Sequence[Addend]:
        """What comes to the product of matrix `name` with all rows x[n, k]."""
        return [
            Addend(matrices[name], at, self._first(matrices[name], x, at))
            for matrices, at in self._parts
            if name in matrices
        ]

    def _first(self, low_rank: LowRank, x: F32, at: RowIndex) -> F32:
        """A x of the rows `at`, [n, rank]."""
        if isinstance(at, slice):
            out = np.empty((at.stop - at.start, low_rank.rank), np.float32)
            self._kernels.matmul(x[at], low_rank.a, low_rank.a_dtype, out)
            return out
        out = np.empty((len(at), low_rank.rank), np.float32)
        for begin in range(0, len(at), GATHERED):
            part = slice(begin, begin + GATHERED)
            self._kernels.matmul(x[at[part]], low_rank.a, low_rank.a_dtype, out[part])
        return out


def _places(rows: I64, at: RowIndex) -> I32:
    """Where the rows `at` are among `rows`, both ascending."""
    inside = (rows >= at.start) & (rows < at.stop) if isinstance(at, slice) else np.isin(rows, at)
    return np.flatnonzero(inside).astype(np.int32)
