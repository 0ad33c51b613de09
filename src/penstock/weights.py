"""The weights of a model as a pass meets them: piece after piece, resident or streamed from disk.

A piece is a run of rows of one matrix, small enough that a ring of a few of them fits any ceiling. Pieces are the unit
of reading, of residency and of arithmetic; the model walks them in the order that it declared (`order`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.files import Extent, Files, aligned_buffer
from penstock.reader import ReadAhead, ReadTotals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from penstock.format import TensorInfo
    from penstock.kernels import F32, I64, U8, Kernels

PIECE_BYTES = 8 << 20
READ_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [begin, end) of a matrix."""

    tensor: TensorInfo
    begin: int
    end: int

    @property
    def extent(self) -> Extent:
        row_bytes = self.tensor.nbytes // self.tensor.shape[0]
        return Extent(self.tensor.path, self.tensor.begin + self.begin * row_bytes, (self.end - self.begin) * row_bytes)

    @property
    def nbytes(self) -> int:
        return self.extent.nbytes


@dataclass(frozen=True, slots=True)
class PieceData:
    """A piece that is in memory: `bytes` holds rows `rows` of a matrix, in `dtype`."""

    rows: slice
    bytes: U8
    dtype: str


def split(tensors: Sequence[TensorInfo], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """The pieces of matrices of equal height, alternating as zip() walks them: equal runs of rows but for the last.

    A piece has at most `piece_bytes`, where a row allows it.
    """
    height = tensors[0].shape[0]
    step = max(1, min(piece_bytes * height // max(1, tensor.nbytes) for tensor in tensors))
    return [Piece(t, begin, min(begin + step, height)) for begin in range(0, height, step) for t in tensors]


def residency_order(count: int) -> list[int]:
    """Indices 0..count-1 such that every prefix is spread evenly (van der Corput sequence).

    Pinning a prefix leaves the streamed pieces evenly spaced, so that the disk never idles for long; and a smaller
    budget pins a subset of what a larger one does.
    """
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


class Weights:
    """Matrices by pieces, in pass order; embedding rows one by one; vectors whole.

    `order` names the matrices as a pass uses them: each entry is a group whose pieces alternate.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        order: Sequence[tuple[str, ...]],
        kernels: Kernels,
        resident_bytes: int = 0,
        piece_bytes: int = PIECE_BYTES,
        read_depth: int = READ_DEPTH,
    ) -> None:
        self.tensors = tensors
        self._kernels = kernels
        self._pieces = [piece for group in order for piece in split([tensors[name] for name in group], piece_bytes)]
        self._by_name: dict[str, list[int]] = {}
        for index, piece in enumerate(self._pieces):
            self._by_name.setdefault(piece.tensor.name, []).append(index)
        self._priority = residency_order(len(self._pieces))
        self._resident: dict[int, U8] = {}
        self._files = Files()
        extents = [piece.extent for piece in self._pieces]
        depth = max(read_depth, 1 + max((len(group) for group in order), default=0))  # a group is held together
        self._stream = ReadAhead(self._files, extents, self._resident.__contains__, depth)
        self._closed = False
        self.pass_bytes = sum(piece.nbytes for piece in self._pieces)
        self.limit_resident(resident_bytes)

    @property
    def totals(self) -> ReadTotals:
        """Running totals of the streamed pieces."""
        return self._stream.totals

    @property
    def ring_bytes(self) -> int:
        return self._stream.ring_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pieces that are held in memory now."""
        return sum(data.nbytes for data in self._resident.values())

    def limit_resident(self, budget: int) -> None:
        """Keep at most `budget` bytes of pieces in memory; they are kept as the next pass reads them."""
        ends = accumulate(self._pieces[index].nbytes for index in self._priority)
        self._keep = {index for index, end in zip(self._priority, ends, strict=True) if end <= budget}
        for index in self._resident.keys() - self._keep:
            del self._resident[index]

    def pieces(self, name: str) -> Iterator[PieceData]:
        """The pieces of a matrix, in order; each is valid until the next one is asked for. Raises ReadError."""
        for index in self._by_name[name]:
            piece = self._pieces[index]
            with self._data(index) as data:
                yield PieceData(slice(piece.begin, piece.end), data, piece.tensor.dtype.value)

    def vector(self, name: str) -> F32:
        """A whole vector (norm weights, a bias), float32 [n]."""
        return self._widened(self.tensors[name], 0, 1).ravel()

    def rows(self, name: str, indices: I64) -> F32:
        """The given rows of a matrix, float32 [len(indices), k], each read by itself, equal ones once.

        Every pass begins with this one, so here it shows that the model was closed: raises UsageError.
        """
        if self._closed:
            raise UsageError("This model has been closed.", "Open it again.")
        tensor = self.tensors[name]
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = np.concatenate([self._widened(tensor, int(row), tensor.shape[0]) for row in unique])
        return rows[inverse]

    def close(self) -> None:
        self._closed = True
        self._stream.close()
        self._files.close()
        self._resident.clear()

    @contextmanager
    def _data(self, index: int) -> Iterator[U8]:
        if (resident := self._resident.get(index)) is not None:
            yield resident
            return
        data = self._stream.take(index)
        try:
            if index in self._keep:
                self._resident[index] = _kept(data)
            yield data
        finally:
            self._stream.give_back(data)

    def _widened(self, tensor: TensorInfo, part: int, parts: int) -> F32:
        """Part `part` of a tensor cut into `parts` equal ones, float32 [1, n]."""
        nbytes = tensor.nbytes // parts
        extent = Extent(tensor.path, tensor.begin + part * nbytes, nbytes)
        raw = self._files.read(extent, aligned_buffer(nbytes))
        out = np.empty((1, tensor.n_elements // parts), np.float32)
        self._kernels.widen(raw, tensor.dtype.value, out[0])
        return out


def _kept(data: U8) -> U8:
    """A copy in pages of its own: a heap would not give them back one by one."""
    copy = aligned_buffer(data.nbytes)[: data.nbytes]
    copy[:] = data
    return copy
