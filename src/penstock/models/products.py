"""Products of rows with matrices, which come by pieces: each is applied to all rows before the next is asked for."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.architectures.names import bias_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.events import Events
    from penstock.models.adapted import AdaptedRows, Addend
    from penstock.weights.pieces import PieceData


class Matrices(Protocol):
    """Where a model's matrices come from: its weights, or some stand-in for them."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def events(self) -> Events: ...
    def expect(self, names: Sequence[str]) -> None:
        """Told of matrices of experts, in the order in which their pieces will be asked for."""

    def pieces(self, name: str) -> Generator[PieceData]: ...
    def rows(self, name: str, indices: I64) -> F32: ...


@dataclass(frozen=True, slots=True)
class Products:
    """Those of one model's matrices."""

    weights: Matrices
    kernels: Kernels
    vectors: Mapping[str, F32]
    """Biases are among them."""
    activation: str

    def linear(self, name: str, x: F32, adapted: AdaptedRows | None = None, add_to: F32 | None = None) -> F32:
        """x @ weight.T + bias, and what adapters have besides, [n, rows of the weight], into a new array or added to
        `add_to`."""
        n_out = self.weights.tensors[name].shape[0]
        out = np.empty((len(x), n_out), np.float32) if add_to is None else add_to
        addends = adapted.addends(name, x) if adapted is not None else ()
        with self.pieces(name) as pieces:
            for piece in pieces:
                self.apply(piece, name, x, out[:, piece.rows], addends, accumulate=add_to is not None)
        return out

    def gated(self, gate_name: str, up: str, x: F32, adapted: AdaptedRows | None = None) -> F32:
        """activation(gate(x)) * up(x), [n, rows of the matrices], of two.

        Each by itself, since they need not be cut alike; only one piece of up(x) is held at a time.
        """
        out = self.linear(gate_name, x, adapted)
        addends = adapted.addends(up, x) if adapted is not None else ()
        room = np.empty((len(x), 0), np.float32)
        with self.pieces(up) as pieces:
            for piece in pieces:
                gate, width = out[:, piece.rows], piece.rows.stop - piece.rows.start
                if width > room.shape[1]:  # the first piece is the longest
                    room = np.empty((len(x), width), np.float32)
                upward = room[:, :width]
                self.apply(piece, up, x, upward, addends)
                self.kernels.gated(gate, upward, self.activation, gate)
        return out

    def pieces(self, name: str) -> closing[Generator[PieceData]]:
        """The pieces of a matrix; whatever happens among them, their buffers go back at once."""
        return closing(self.weights.pieces(name))

    def apply(
        self,
        piece: PieceData,
        name: str,
        x: F32,
        out: F32,
        addends: Sequence[Addend],
        accumulate: bool = False,
    ) -> None:
        """One piece's part of `linear`. What is added to comes last, so a row that goes through no adapter has the
        same bits whatever goes through one beside it."""
        bias = self.vectors.get(bias_of(name))
        bias = bias if bias is None else bias[piece.rows]
        begin = time.perf_counter()
        y = np.empty(out.shape, np.float32) if accumulate and addends else out
        piece.matmul(self.kernels, x, y, bias, accumulate and not addends)
        for addend in addends:
            addend.add_to(self.kernels, y, piece.rows)
        if y is not out:
            self.kernels.add_rows(y, np.ones(len(y), np.float32), out)
        self.weights.events.tell("compute", name, begin, time.perf_counter(), piece.nbytes)
