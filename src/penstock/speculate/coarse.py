"""The target as its own drafter: its coarse tier, which is in memory anyway, stands for the weights.

The sign and the magnitude's class of every weight are exact; what a class stands for is its mean under the normal
distribution that the row's classes suggest. Small matrices that are not packed are there as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from penstock.compute.levels import CoarseChunks, CoarseRows
from penstock.events import Events
from penstock.memory.budget import MOST_MISSING
from penstock.speculate.exact_head import exact_rows
from penstock.speculate.model_drafter import ModelDrafter
from penstock.weights.pieces import CoarseBytes, PlainData

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.corrections import Correction
    from penstock.compute.kernels import F32, I64, U8, Kernels
    from penstock.models.chain import Chain
    from penstock.models.stage import Stage
    from penstock.speculate.drafter import Guess
    from penstock.speculate.tree import Tree
    from penstock.weights.pieces import PieceData
    from penstock.weights.weights import Weights

LEVEL_BYTES = 8
"""What a row takes besides its coarse bits."""
COARSE_SHARPNESS = 3.0
"""Measured on the demo model (sharpness.py)."""


@dataclass(frozen=True, slots=True)
class CoarseData:
    """A matrix's coarse rows."""

    rows: slice
    coarse: CoarseRows
    correction: Correction | None

    @property
    def nbytes(self) -> int:
        return self.coarse.chunks.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul_coarse(x, self.coarse, out, bias=bias, accumulate=accumulate)
        if self.correction is not None:
            self.correction.add_to(kernels, x, out)


@dataclass(frozen=True, slots=True)
class Absent:
    """Rows of a head that are not in memory: their tokens are not guessed."""

    rows: slice
    nbytes = 0

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        out.fill(-np.inf)


class _Levels(NamedTuple):
    """What the classes of a run of rows stand for, and what corrects its products. It holds no bytes of weights: these
    may leave memory at any time."""

    magnitudes: U8
    scales: F32
    correction: Correction | None


class CoarseWeights:
    """The matrices of a model as far as their coarse tier is in memory, which may be given up between passes."""

    def __init__(self, weights: Weights, kernels: Kernels, corrections: Mapping[str, Correction] | None = None) -> None:
        self.events = Events()
        """Of its own: guessing is told as a whole."""
        self._weights = weights
        self._kernels = kernels
        self._corrections = corrections or {}
        self._known: dict[str, tuple[list[int], list[_Levels]]] = {}
        """Of each matrix: where its pieces are in memory, and what is known of each run of its rows."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._weights.tensors

    @property
    def changes(self) -> int:
        """Grows whenever `load` would find anything else in memory than before."""
        return self._weights.draft_changes

    def load(self, name: str) -> bool:
        """Learn what the classes of a matrix stand for; whether all of it is in memory."""
        pieces = self._weights.draft(name)
        if pieces is None:
            self._known.pop(name, None)
            return False
        addresses = [piece.bytes.ctypes.data for piece in pieces]  # what leaves memory comes back elsewhere
        known = self._known.get(name)
        if isinstance(pieces[0], CoarseBytes) and (known is None or known[0] != addresses):
            self._known[name] = addresses, [self._levels(name, run) for run in _runs(pieces)]
        return True

    def _levels(self, name: str, run: Sequence[CoarseBytes | PlainData]) -> _Levels:
        correction = self._corrections.get(name)
        rows = slice(run[0].rows.start, run[-1].rows.stop)
        if correction is not None and rows != slice(0, self.tensors[name].shape[0]):
            correction = correction.of_rows(rows)
        return _Levels(*self._kernels.coarse_levels(_chunks(run)), correction)

    def load_all(self, names: Sequence[str]) -> bool:
        """`load` each of them; whether all are there."""
        there = [self.load(name) for name in names]
        return all(there)

    def expect(self, names: Sequence[str]) -> None:
        """Nothing to do: they are in memory."""

    def pieces(self, name: str) -> Generator[PieceData]:
        """A matrix that is in memory since it was loaded, in one piece, however many it is stored in; of a head more
        than one where some of its rows are absent."""
        pieces = self._weights.draft(name) or []
        end = self.tensors[name].shape[0]
        if isinstance(pieces[0], PlainData):  # a small one
            yield PlainData(slice(0, end), np.concatenate([piece.bytes for piece in pieces]), pieces[0].dtype)
            return
        before = 0
        for run, levels in zip(_runs(pieces), self._known[name][1], strict=True):
            rows = slice(run[0].rows.start, run[-1].rows.stop)
            if rows.start > before:
                yield Absent(slice(before, rows.start))
            coarse = CoarseRows(_chunks(run), levels.magnitudes, levels.scales)
            yield CoarseData(rows, coarse, levels.correction)
            before = rows.stop
        if before < end:
            yield Absent(slice(before, end))

    def rows(self, name: str, indices: I64) -> F32:
        return self._weights.rows(name, indices)


def _runs(pieces: Sequence[CoarseBytes | PlainData]) -> list[list[CoarseBytes | PlainData]]:
    """Those whose rows are beside each other together."""
    runs = [[pieces[0]]]
    for before, piece in pairwise(pieces):
        if before.rows.stop == piece.rows.start:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _chunks(pieces: Sequence[CoarseBytes | PlainData]) -> CoarseChunks:
    """Pieces of a matrix beside each other as one."""
    first = pieces[0]
    if not isinstance(first, CoarseBytes):
        raise TypeError("no coarse tier")
    return CoarseChunks(
        rows=pieces[-1].rows.stop - pieces[0].rows.start,
        cols=first.cols,
        rows_per_chunk=first.rows_per_chunk,
        arrays=[piece.bytes for piece in pieces],
    )


class CoarseDrafter(ModelDrafter):
    """Guesses with the layers whose coarse tier is in memory, and rests where too many are missing."""

    def __init__(
        self, chain: Chain, stages: Sequence[Stage], corrections: Mapping[str, Correction] | None = None
    ) -> None:
        """`stages`: those of the chain, all in this process; `corrections`: of matrices, by name."""
        last = next(stage for stage in stages if stage.share.head)
        self._stages = [
            (stage.share.layers, CoarseWeights(stage.weights, stage.decoder.kernels, corrections)) for stage in stages
        ]
        for stage, (_, coarse) in zip(stages, self._stages, strict=True):
            stage.coarse = coarse
        self._head = self._stages[stages.index(last)][1]
        self._architecture = last.decoder.architecture
        self._layers = layers = list[int]()
        """Those that it guesses with."""
        refine = exact_rows(last.weights, self._architecture.head, last.decoder.kernels, last.decoder.scale_logits)
        super().__init__(
            "coarse",
            last.decoder.over(self._head),
            lambda rows: chain.hidden(rows, layers, "coarse"),  # without `self`, which would refer to itself
            refine=None if refine is None else refine.refine,
            sharpness=COARSE_SHARPNESS,
        )
        self._ready = False
        self._seen: list[int] = []
        """What had changed in each stage when all was last loaded."""

    def begin(self, trees: Sequence[Tree]) -> None:
        super().begin(trees)
        changes = [coarse.changes for _, coarse in self._stages]
        if changes != self._seen:
            self._load()
            self._seen = changes

    def _load(self) -> None:
        """Find out which layers are there to guess with."""
        matrices = self._architecture.layer_matrices
        self._layers[:] = [
            layer for layers, coarse in self._stages for layer in layers if coarse.load_all(matrices(layer))
        ]
        count = sum(len(layers) for layers, _ in self._stages)
        self._ready = self._head.load(self._architecture.head) and len(self._layers) >= (1 - MOST_MISSING) * count

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        return super().expand(nodes) if self._ready else [[] for _ in nodes]
