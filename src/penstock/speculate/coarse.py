"""The target as its own drafter: its coarse tier, which is in memory anyway, stands for the weights.

The sign and the magnitude's class of every weight are exact; what a class stands for is its mean under the normal
distribution that the row's classes suggest. Small matrices that are not packed are there as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.events import Events
from penstock.levels import CoarseRows
from penstock.models.llama import head_name, layer_matrices
from penstock.packed import PackedTensor
from penstock.pieces import CoarseBytes, PlainData
from penstock.speculate.exact_head import ExactRows
from penstock.speculate.model_drafter import ModelDrafter

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from penstock.checkpoint import Tensor
    from penstock.kernels import F32, I64, U8, Kernels
    from penstock.models.llama import Llama
    from penstock.pieces import PieceData
    from penstock.speculate.drafter import Guess
    from penstock.speculate.tree import Tree
    from penstock.weights import Weights

LEVEL_BYTES = 8
"""What a row takes besides its coarse bits."""
COARSE_SHARPNESS = 3.0
"""Measured on the demo model (sharpness.py)."""
MOST_MISSING = 0.25
"""Of the layers: with fewer it would guess in vain."""


@dataclass(frozen=True, slots=True)
class CoarseData:
    """A matrix's coarse rows."""

    rows: slice
    coarse: CoarseRows

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.coarse.coarse)

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul_coarse(x, self.coarse, out, bias=bias, accumulate=accumulate)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A matrix, and the arrays in memory that it is made of."""

    arrays: list[U8]
    data: CoarseData | PlainData


class CoarseWeights:
    """The matrices of a model as far as their coarse tier is in memory."""

    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        self.events = Events()
        """Of its own: guessing is told as a whole."""
        self._weights = weights
        self._kernels = kernels
        self._whole: dict[str, _Whole] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._weights.tensors

    def load(self, name: str) -> bool:
        """Take what is in memory of a matrix now; whether that is all of it."""
        there = self._weights.draft(name)
        if there is None:
            self._whole.pop(name, None)
        elif name not in self._whole or not _same(self._whole[name].arrays, there):
            self._whole[name] = self._join(there)
        return there is not None

    def load_all(self, names: Sequence[str]) -> bool:
        """`load` each of them; whether all are there."""
        there = [self.load(name) for name in names]
        return all(there)

    def pieces(self, name: str) -> Generator[PieceData]:
        """One piece, however many it is stored in."""
        yield self._whole[name].data

    def rows(self, name: str, indices: I64) -> F32:
        return self._weights.rows(name, indices)

    def _join(self, pieces: Sequence[CoarseBytes | PlainData]) -> _Whole:
        arrays = [piece.bytes for piece in pieces]
        rows, first = slice(0, pieces[-1].rows.stop), pieces[0]
        if isinstance(first, PlainData):  # a small one
            return _Whole(arrays, PlainData(rows, np.concatenate(arrays), first.dtype))
        shape = rows.stop, first.cols, first.rows_per_chunk
        levels = self._kernels.coarse_levels(arrays, *shape)
        return _Whole(arrays, CoarseData(rows, CoarseRows(*shape, arrays, *levels)))


class CoarseDrafter(ModelDrafter):
    """Guesses with the layers whose coarse tier is in memory, and rests where too many are missing."""

    def __init__(self, model: Llama, weights: Weights) -> None:
        self._coarse = CoarseWeights(weights, model.kernels)
        self._head_name = head = head_name(model.config)
        tensor = weights.tensors[head]
        packed = isinstance(tensor, PackedTensor) and tensor.codec == "planes"
        refine = ExactRows(weights, head, model.kernels).refine if packed else None
        super().__init__("coarse", model.over(self._coarse), [], refine=refine, sharpness=COARSE_SHARPNESS)
        self._ready = False

    def begin(self, trees: Sequence[Tree]) -> None:
        super().begin(trees)
        count = self._model.config.num_hidden_layers
        self._layers = [layer for layer in range(count) if self._coarse.load_all(layer_matrices(layer))]
        head = self._coarse.load(self._head_name)
        self._ready = head and len(self._layers) >= (1 - MOST_MISSING) * count

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        return super().expand(nodes) if self._ready else [[] for _ in nodes]


def _same(arrays: Sequence[U8], pieces: Sequence[CoarseBytes | PlainData]) -> bool:
    """Whether these arrays are the pieces': what leaves memory comes back as another array."""
    return [array.ctypes.data for array in arrays] == [piece.bytes.ctypes.data for piece in pieces]
