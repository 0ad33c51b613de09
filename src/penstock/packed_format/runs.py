"""How a file is cut into runs of chunks, and how a run is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.names import canonical_name, is_embedding
from penstock.compute import codec
from penstock.errors import PenstockError
from penstock.packed_format.chunks import RUN_BYTES, same_bytes
from penstock.packed_format.layout import (
    CHUNK_ALIGNMENT,
    STREAM_ALIGNMENT,
    coarse_stream_bytes,
    cut,
    padded,
    stream_names,
)
from penstock.strict_json import shown
from penstock.system.pages import HUGE_PAGE_BYTES, page_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from penstock.compute.kernels import U8
    from penstock.packed_format.layout import Cut
    from penstock.safetensors_header import Header, TensorInfo


@dataclass(frozen=True)
class PassOrder:
    """When a pass uses each tensor: `ranks` has canonical names, whose `prefix` the file's names may lack."""

    prefix: str
    ranks: Mapping[str, int]

    def canonical(self, name: str) -> str:
        return canonical_name(name, self.prefix)

    def rank(self, name: str) -> int:
        return self.ranks.get(self.canonical(name), len(self.ranks))


@dataclass(frozen=True)
class Planned:
    """A tensor of the original file, and how it is going to be cut."""

    tensor: TensorInfo
    how: Cut
    rows_per_chunk: int

    @property
    def n_chunks(self) -> int:
        return self.how.n_chunks(self.rows_per_chunk)

    @property
    def chunk_bytes(self) -> int:
        """Of all chunks but the last, in the original file."""
        return self.rows_per_chunk * self.how.row_bytes

    @property
    def coarse_chunk_bytes(self) -> int:
        """Of all chunks of the coarse stream but the last; 0 where the tensor is stored raw."""
        return codec.coarse_bytes(self.rows_per_chunk, self.how.cols) if self.how.in_tiers else 0

    @property
    def coarse_nbytes(self) -> int:
        """Of the coarse stream."""
        if not self.how.in_tiers:
            return 0
        return coarse_stream_bytes(self.how.rows, self.how.cols, self.rows_per_chunk)

    @property
    def streams(self) -> tuple[str, ...]:
        """Their names in the packed file."""
        return stream_names(self.tensor.name, self.how.codec)

    def runs(self, begin: int = 0) -> Iterator[PackRun]:
        """The chunks from `begin` on, in runs of about RUN_BYTES, or of less where narrow rows grow in the packing."""
        step = max(1, RUN_BYTES // max(1, self.chunk_bytes, self.coarse_chunk_bytes))
        for first in range(begin, self.n_chunks, step):
            yield PackRun(self, first, min(first + step, self.n_chunks))


def plan(header: Header, order: PassOrder, version: int) -> list[Planned]:
    """The tensors in the order of the packed file: matrices as a pass uses them, then the others as they come."""
    planned = []
    for tensor in header.tensors.values():
        how = cut(tensor, version)
        planned.append(Planned(tensor, how, how.rows_per_chunk(is_embedding(order.canonical(tensor.name)))))
    planned.sort(key=lambda one: (1, 0) if not one.how.in_tiers else (0, order.rank(one.tensor.name)))
    return planned


class Buffers:
    """Memory that runs are encoded into, over and over: a system takes long to find new pages."""

    def __init__(self) -> None:
        self._free: dict[int, list[U8]] = {}

    def take(self, nbytes: int) -> U8:
        """At least so many bytes of anything. Threads may share it."""
        size = padded(nbytes, HUGE_PAGE_BYTES)
        try:
            return self._free.setdefault(size, []).pop()
        except IndexError:
            return page_array(size)

    def give_back(self, *arrays: U8) -> None:
        """Let others take what `take` has returned."""
        for array in arrays:
            self._free.setdefault(array.nbytes, []).append(array)


@dataclass(frozen=True)
class PackRun:
    """Chunks [begin, end) that are encoded together."""

    planned: Planned
    begin: int
    end: int

    @property
    def range(self) -> tuple[int, int]:
        """Begin and size in the original file."""
        begin = self.begin * self.planned.chunk_bytes
        end = min(self.end * self.planned.chunk_bytes, self.planned.tensor.nbytes)
        return self.planned.tensor.begin + begin, end - begin

    def encode(self, data: U8, source: str, buffers: Buffers) -> Encoded:
        """`data`: the original bytes; `source`: their file, for messages. Raises PenstockError for a defect of ours."""
        if not self.planned.how.in_tiers:
            return self._padded(data)
        cols, rows = self.planned.how.cols, self._rows()
        coarse = buffers.take(sum(codec.coarse_bytes(n, cols) for n in rows) + STREAM_ALIGNMENT)
        fine = buffers.take(sum(codec.most_fine_bytes(n, cols) for n in rows) + STREAM_ALIGNMENT)
        again = buffers.take(rows[0] * cols * 2)
        begin = coarse_begin = fine_begin = 0
        sizes = []
        for n in rows:
            weights = data[begin : begin + n * cols * 2]
            tiers = coarse[coarse_begin : coarse_begin + codec.coarse_bytes(n, cols)], fine[fine_begin:]
            sizes.append(codec.encode(weights, n, cols, *tiers))
            self._check(weights, n, tiers, sizes[-1], again[: weights.nbytes], source)
            begin, coarse_begin, fine_begin = begin + weights.nbytes, coarse_begin + len(tiers[0]), sum(sizes)
        buffers.give_back(again)
        coarse[coarse_begin : coarse_begin + STREAM_ALIGNMENT] = 0
        fine[fine_begin : fine_begin + STREAM_ALIGNMENT] = 0
        return Encoded(self, coarse, fine, sizes, buffers)

    def _check(self, weights: U8, n_rows: int, tiers: tuple[U8, U8], fine_bytes: int, again: U8, source: str) -> None:
        """Make sure that a chunk comes back; `again` has room for it."""
        offsets = np.array([0, fine_bytes], np.int64)
        cols, (coarse, fine) = self.planned.how.cols, tiers
        packed = codec.PackedRows(
            rows=n_rows, cols=cols, rows_per_chunk=n_rows, coarse=coarse, fine=fine, fine_offsets=offsets
        )
        try:
            codec.decode(packed, 0, n_rows, again)
            same = same_bytes(again, weights)
        except codec.MalformedRow:
            same = False
        if not same:
            problem = f"{source}: {shown(self.planned.tensor.name)} does not come back from its packed form as it was"
            raise PenstockError(problem, "This is a defect of Penstock: nothing wrong was written. Please report it.")

    def _padded(self, data: U8) -> Encoded:
        """Chunks that are stored as they are."""
        step = self.planned.chunk_bytes
        parts = [data[begin : begin + step] for begin in range(0, data.nbytes, step)]
        sizes = [padded(part.nbytes, CHUNK_ALIGNMENT) for part in parts]
        out = np.zeros(sum(sizes), np.uint8)
        for part, size, end in zip(parts, sizes, accumulate(sizes), strict=True):
            out[end - size : end - size + part.nbytes] = part
        return Encoded(self, np.zeros(0, np.uint8), out, sizes)

    def _rows(self) -> list[int]:
        """Rows in each chunk."""
        step = self.planned.rows_per_chunk
        return [min(step, self.planned.how.rows - chunk * step) for chunk in range(self.begin, self.end)]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A run's chunks, one after the other.

    In two tiers, STREAM_ALIGNMENT zeros follow in both arrays, for the padding of a stream's end, and then anything;
    `coarse` is empty where the tensor is stored raw.
    """

    run: PackRun
    coarse: U8
    fine: U8
    fine_sizes: list[int]
    buffers: Buffers | None = None
    """Where the arrays are from."""

    def release(self) -> None:
        """Let others have the arrays' memory."""
        if self.buffers is not None:
            self.buffers.give_back(self.coarse, self.fine)
