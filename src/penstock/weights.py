"""The weights of a model as a pass meets them: piece after piece, resident or streamed from disk.

A piece is a run of rows of one matrix, small enough that a ring of a few of them fits any ceiling. Pieces are the unit
of reading, of residency and of arithmetic; the model walks them in the order that it declared (`order`).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.events import Events
from penstock.files import Extent, Files, aligned_buffer
from penstock.pages import page_array
from penstock.reader import ReadAhead, ReadTotals

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from penstock.format import TensorInfo
    from penstock.kernels import F32, I64, U8, Kernels
    from penstock.reader import Ring

ROW_READS = 8
"""Embedding rows that are read at once."""


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


def split(tensors: Sequence[TensorInfo], piece_bytes: int) -> list[Piece]:
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
        ring: Ring,
        events: Events | None = None,
    ) -> None:
        """None of the pieces stay in memory, until `limit_resident` says how many may."""
        self.tensors = tensors
        self._kernels = kernels
        self.events = events or Events()
        groups = [[tensors[name] for name in group] for group in order]
        self._pieces = [piece for group in groups for piece in split(group, ring.piece_bytes)]
        self._by_name: dict[str, list[int]] = {}
        for index, piece in enumerate(self._pieces):
            self._by_name.setdefault(piece.tensor.name, []).append(index)
        self._priority = residency_order(len(self._pieces))
        self._ends = [*accumulate(self._pieces[index].nbytes for index in self._priority)]
        self._resident: dict[int, U8] = {}
        self._files = Files()
        extents = [piece.extent for piece in self._pieces]
        depth = max(ring.depth, 1 + max((len(group) for group in order), default=0))  # a group is held together
        self._keep: set[int] = set()
        self._stream = ReadAhead(
            self._files,
            extents,
            self._resident.__contains__,
            depth,
            self._tell_read,
            ring.reads,
            keep=lambda index: index in self._keep,
        )
        self._closed = False
        self.pass_bytes = self._ends[-1] if self._ends else 0

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

    def prefetch(self) -> tuple[int, float]:
        """Fill the reader's ring with what the next pass streams first: bytes that came, and seconds they took.

        Raises UsageError where the model was closed.
        """
        self._check_open()
        return self._stream.fill()

    def limit_resident(self, budget: int) -> None:
        """Keep at most `budget` bytes of pieces in memory; they are kept as the next pass reads them."""
        count = bisect_right(self._ends, budget)
        if count == len(self._keep):
            return
        self._keep = set(self._priority[:count])
        for index in self._resident.keys() - self._keep:
            del self._resident[index]

    def pieces(self, name: str) -> Generator[PieceData]:
        """The pieces of a matrix, in order; each is valid until the next one is asked for. Raises ReadError."""
        for index in self._by_name[name]:
            piece = self._pieces[index]
            with self._data(index) as data:
                yield PieceData(slice(piece.begin, piece.end), data, piece.tensor.dtype.value)

    def vector(self, name: str) -> F32:
        """A whole vector (norm weights, a bias), float32 [n]."""
        tensor = self.tensors[name]
        raw = self._files.read(Extent(tensor.path, tensor.begin, tensor.nbytes), aligned_buffer(tensor.nbytes))
        out = np.empty(tensor.n_elements, np.float32)
        self._kernels.widen(raw, tensor.dtype.value, out)
        return out

    def rows(self, name: str, indices: I64) -> F32:
        """The given rows of a matrix, float32 [len(indices), k], each read by itself, equal ones once.

        Every pass begins with this one, so here it shows that the model was closed: raises UsageError.
        """
        self._check_open()
        self._stream.recover()
        tensor = self.tensors[name]
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = self._rows_as_stored(tensor, unique)
        out = np.empty((len(unique), tensor.shape[1]), np.float32)
        self._kernels.widen(rows.reshape(-1), tensor.dtype.value, out.reshape(-1))
        return out[inverse]

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("This model has been closed.", "Open it again.")

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
        begin, name = time.perf_counter(), self._pieces[index].tensor.name
        data = self._stream.take(index)
        try:
            self.events.tell("wait", name, begin, time.perf_counter(), data.nbytes)
            if index in self._keep:
                self._resident[index] = _copy(data) if self._stream.in_ring(data) else data
            yield data
        except BaseException:
            # A walk that was dropped may be closed by the garbage collector, even amid the start of another read.
            self._stream.give_back(data, read_on=False)
            raise
        self._stream.give_back(data)

    def _rows_as_stored(self, tensor: TensorInfo, rows: I64) -> U8:
        """The given rows, uint8 [len(rows), bytes of a row], several read at once."""
        nbytes, begin = tensor.nbytes // tensor.shape[0], time.perf_counter()
        out = np.empty((len(rows), nbytes), np.uint8)

        def read(part: int) -> None:
            buffer = aligned_buffer(nbytes)
            for i in range(part, len(rows), ROW_READS):
                out[i] = self._files.read(Extent(tensor.path, tensor.begin + int(rows[i]) * nbytes, nbytes), buffer)

        if len(rows) == 1:
            read(0)
        else:
            with ThreadPoolExecutor(ROW_READS, thread_name_prefix="penstock-row") as threads:
                list(threads.map(read, range(min(ROW_READS, len(rows)))))
        end = time.perf_counter()
        self.totals.count(0, end - begin, end - begin)  # some KB, which are no part of what a pass streams
        self.events.tell("wait", tensor.name, begin, end, out.nbytes)
        return out

    def _tell_read(self, index: int, begin: float, end: float) -> None:
        piece = self._pieces[index]
        self.events.tell("read", piece.tensor.name, begin, end, piece.nbytes)


def _copy(data: U8) -> U8:
    """A copy in pages of its own: a heap would not give them back one by one."""
    copy = page_array(data.nbytes)
    copy[:] = data
    return copy
