"""The target as its own drafter: its coarse tier, which is in memory anyway, stands for the weights.

The sign and the magnitude's class of every weight are exact; what a class stands for is its mean under the normal
distribution that the row's classes suggest. Small matrices that are not packed are there as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    from penstock.kernels import F32, I64, Kernels
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
    """A piece's coarse rows."""

    rows: slice
    coarse: CoarseRows

    @property
    def nbytes(self) -> int:
        return self.coarse.coarse.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul_coarse(x, self.coarse, out, bias=bias, accumulate=accumulate)


class CoarseWeights:
    """The matrices of a model as far as their coarse tier is in memory."""

    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        self.events = Events()
        """Of its own: guessing is told as a whole."""
        self._weights = weights
        self._kernels = kernels
        self._pieces: dict[str, list[CoarseData | PlainData]] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._weights.tensors

    def load(self, name: str) -> bool:
        """Take what is in memory of a matrix now; whether that is all of it."""
        there = self._weights.draft(name)
        if there is None:
            self._pieces.pop(name, None)
        elif name not in self._pieces or not _same(self._pieces[name], there):
            self._pieces[name] = [self._data(piece) for piece in there]
        return there is not None

    def load_all(self, names: Sequence[str]) -> bool:
        """`load` each of them; whether all are there."""
        there = [self.load(name) for name in names]
        return all(there)

    def pieces(self, name: str) -> Generator[PieceData]:
        yield from self._pieces[name]

    def rows(self, name: str, indices: I64) -> F32:
        return self._weights.rows(name, indices)

    def _data(self, piece: CoarseBytes | PlainData) -> CoarseData | PlainData:
        if isinstance(piece, PlainData):
            return piece
        count = piece.rows.stop - piece.rows.start
        shape = count, piece.cols, piece.rows_per_chunk
        magnitudes, scales = self._kernels.coarse_levels(piece.bytes, *shape)
        return CoarseData(piece.rows, CoarseRows(*shape, piece.bytes, magnitudes, scales))


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


def _same(old: Sequence[CoarseData | PlainData], new: Sequence[CoarseBytes | PlainData]) -> bool:
    """Whether these are the pieces that were taken before: what leaves memory comes back as another array."""
    if len(old) != len(new):
        return False
    arrays = (piece.coarse.coarse if isinstance(piece, CoarseData) else piece.bytes for piece in old)
    return all(array is piece.bytes or array.base is piece.bytes.base for array, piece in zip(arrays, new, strict=True))
