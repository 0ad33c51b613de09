"""A pass over exact weights that also sees what the coarse tier would make of the same activations.

After each matrix, whose product is there for all rows then, its correction is fitted: the directions of the errors from
the product, then what leads into them from the weights, which are walked once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.codec import coarse_bytes
from penstock.compute.levels import CoarseChunks, CoarseRows
from penstock.tuning.fit import error_basis, quantized
from penstock.weights.pieces import PackedData

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import numpy.typing as npt

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.corrections import Correction
    from penstock.compute.kernels import F32, I64, U8, Kernels
    from penstock.events import Events
    from penstock.tuning.fit import Basis
    from penstock.weights.pieces import PieceData
    from penstock.weights.weights import Weights

SKIPPED = 4
"""Rows at the begin of a text, whose activations are like no other's (arXiv 2309.17453) and which no guess follows."""
WEIGHTS_AT_ONCE = 1 << 20


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

    def pieces(self, name: str) -> Generator[PieceData]:
        heard = _Heard(self.tensors[name].shape[0])
        for piece in self._weights.pieces(name):
            yield _Overheard(piece, heard) if isinstance(piece, PackedData) else piece
        products = heard.give()
        if products is not None:
            errors, exact = products
            self._fit(name, error_basis(errors[SKIPPED:], exact[SKIPPED:], self._rank))

    def _fit(self, name: str, basis: Basis) -> None:
        if not len(basis.gains):
            return
        inward = np.zeros((len(basis.gains), self.tensors[name].shape[1]), np.float32)
        for piece in self._weights.stored(name):
            if isinstance(piece, PackedData):
                _lead(piece, np.ascontiguousarray(basis.vectors[piece.rows].T), inward, self._kernels)
        self._told(name, quantized(basis, inward))


class _Heard:
    """Products of one matrix with all rows, [n, rows]: what the coarse tier lacks of the exact ones, and these."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._products: tuple[F32, F32] | None = None

    def take(self, columns: slice, exact: F32, coarse: F32) -> None:
        if self._products is None:
            shape = len(exact), self._rows
            self._products = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        errors, whole = self._products
        whole[:, columns] = exact
        np.subtract(exact, coarse, out=errors[:, columns])

    def give(self) -> tuple[F32, F32] | None:
        """Errors and exact products, which are not kept; None where nothing was packed."""
        products, self._products = self._products, None
        return products


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
        chunks = _chunks(self.piece)
        kernels.matmul_coarse(x, CoarseRows(chunks, *kernels.coarse_levels(chunks)), coarse)
        exact = out - before
        if bias is not None:
            exact -= bias
        self.heard.take(self.rows, exact, coarse)


def _chunks(piece: PackedData) -> CoarseChunks:
    """The coarse tier of a piece, as a drafter sees it."""
    packed = piece.packed
    return CoarseChunks(
        rows=packed.rows, cols=packed.cols, rows_per_chunk=packed.rows_per_chunk, arrays=[packed.coarse]
    )


def _lead(piece: PackedData, vectors: F32, inward: F32, kernels: Kernels) -> None:
    """Add vectors[rank, rows of the piece] @ E to `inward`, E the errors of the piece's coarse tier."""
    cols, units = piece.packed.cols, _units(piece)
    plain, dtype = piece.plain()
    step = max(1, WEIGHTS_AT_ONCE // cols)
    magnitudes, scales = kernels.coarse_levels(_chunks(piece))
    levels = magnitudes * scales[:, None]
    for begin in range(0, piece.packed.rows, step):
        part = slice(begin, min(begin + step, piece.packed.rows))
        raw = plain[begin * 2 * cols : part.stop * 2 * cols]
        errors = np.empty((part.stop - begin, cols), np.float32)
        kernels.widen(raw, dtype, errors.reshape(-1))
        errors -= _levelled(raw.view("<u2").reshape(errors.shape), levels[part], units[part])
        inward += vectors[:, part] @ np.nan_to_num(errors, copy=False, posinf=0, neginf=0)


def _levelled(bits: npt.NDArray[np.uint16], levels: F32, units: npt.NDArray[np.uint8]) -> F32:
    """What BF16 weights [rows, cols] are by sign and class alone, where classes stand for levels [rows, 4]."""
    exponents = (bits >> 7).astype(np.uint8)  # drops the sign
    out = np.broadcast_to(levels[:, :1], bits.shape).copy()
    for c in (1, 2, 3):
        bounds = np.clip(units.astype(np.int16) + c - 2, 0, 255).astype(np.uint8)
        above = exponents >= bounds[:, None]
        out += above * (levels[:, c] - levels[:, c - 1])[:, None]
    signs = (bits.view(np.int16) >> 15).astype(np.float32) + np.float32(0.5)
    return np.copysign(out, signs)  # type: ignore[no-any-return]


def _units(piece: PackedData) -> U8:
    """The unit byte of each row of a piece."""
    tensor, packed = piece.tensor, piece.packed
    units, offset = [], 0
    for begin in range(0, packed.rows, packed.rows_per_chunk):
        rows = min(packed.rows_per_chunk, packed.rows - begin)
        units.append(packed.coarse[offset : offset + rows])
        offset += coarse_bytes(rows, tensor.cols)
    return np.concatenate(units)
