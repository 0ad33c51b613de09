"""A pass over exact weights that also sees what the coarse tier would make of the same activations.

After each matrix, whose product is there for all rows then, its correction is fitted: the directions of the errors from
the product, then what leads into them from the weights, which are walked once more.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.levels import CoarseChunks, CoarseRows
from penstock.tuning.fit import error_basis, quantized
from penstock.weights.pieces import PackedData

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.corrections import Correction
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.events import Events
    from penstock.weights.pieces import PieceData
    from penstock.weights.weights import Weights

SKIPPED = 4
"""Rows at the begin of a text, whose activations are like no other's (arXiv 2309.17453) and which no guess follows."""


class Listening:
    """The weights of a model, for a pass that fits corrections of `rank`; `told` is called with each, by name."""

    def __init__(self, weights: Weights, kernels: Kernels, rank: int, told: Callable[[str, Correction], None]) -> None:
        self._weights = weights
        self._kernels = kernels
        self._rank = rank
        self._told = told

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._weights.tensors

    @property
    def events(self) -> Events:
        return self._weights.events

    def rows(self, name: str, indices: I64) -> F32:
        return self._weights.rows(name, indices)

    def expect(self, names: Sequence[str]) -> None:
        self._weights.expect(names)

    def pieces(self, name: str) -> Generator[PieceData]:
        heard = _Heard(self.tensors[name].shape[0])
        with closing(self._weights.pieces(name)) as pieces:
            for piece in pieces:
                yield _Overheard(piece, heard) if isinstance(piece, PackedData) else piece
        errors = heard.give()
        if errors is not None:
            self._fit(name, error_basis(errors[SKIPPED:], self._rank))

    def _fit(self, name: str, vectors: F32) -> None:
        if not vectors.size:
            return
        inward = np.zeros((vectors.shape[1], self.tensors[name].shape[1]), np.float32)
        with closing(self._weights.stored(name)) as pieces:
            for piece in pieces:
                if isinstance(piece, PackedData):
                    _lead(piece, np.ascontiguousarray(vectors[piece.rows].T), inward, self._kernels)
        self._told(name, quantized(vectors, inward))


class _Heard:
    """What the coarse tier lacks of one matrix's products with all rows, [n, rows]."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._errors: F32 | None = None

    def take(self, columns: slice, exact: F32, coarse: F32) -> None:
        if self._errors is None:
            self._errors = np.zeros((len(exact), self._rows), np.float32)
        np.subtract(exact, coarse, out=self._errors[:, columns])

    def give(self) -> F32 | None:
        """All of it, which is not kept; None where nothing was packed."""
        errors, self._errors = self._errors, None
        return errors


@dataclass(frozen=True, slots=True)
class _Overheard:
    """A packed piece that tells its products."""

    piece: PackedData
    heard: _Heard

    @property
    def rows(self) -> slice:
        return self.piece.rows

    @property
    def nbytes(self) -> int:
        return self.piece.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        before = out.copy() if accumulate else 0.0
        self.piece.matmul(kernels, x, out, bias, accumulate)
        coarse = np.empty(out.shape, np.float32)
        kernels.matmul_coarse(x, _coarse(self.piece, kernels), coarse)
        exact = out - before
        if bias is not None:
            exact -= bias
        self.heard.take(self.rows, exact, coarse)


def _coarse(piece: PackedData, kernels: Kernels) -> CoarseRows:
    """The coarse tier of a piece, as a drafter sees it."""
    packed = piece.packed
    chunks = CoarseChunks(
        rows=packed.rows, cols=packed.cols, rows_per_chunk=packed.rows_per_chunk, arrays=[packed.coarse]
    )
    return CoarseRows(chunks, *kernels.coarse_levels(chunks))


def _lead(piece: PackedData, vectors: F32, inward: F32, kernels: Kernels) -> None:
    """Add vectors[rank, rows of the piece] @ E to `inward`, E the errors of the piece's coarse tier."""
    rows, cols = piece.packed.rows, piece.packed.cols
    plain, dtype = piece.plain()
    errors, coarse = (np.empty((rows, cols), np.float32) for _ in range(2))
    kernels.widen(plain, dtype, errors.reshape(-1))
    kernels.widen_coarse(_coarse(piece, kernels), coarse)
    errors -= coarse
    product = vectors @ errors
    if not np.isfinite(product).all():
        product = vectors @ np.nan_to_num(errors, posinf=0, neginf=0)
    inward += product
