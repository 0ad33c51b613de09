"""A tensor in a packed file: where its streams lie, and what its chunks have to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import xxhash

from penstock.compute import codec
from penstock.compute.codec import PackedRows
from penstock.disk.files import Extent
from penstock.errors import ChecksumError
from penstock.packed_format.layout import Codec, coarse_stream_bytes, stream_names
from penstock.safetensors_header import DType, TensorInfo
from penstock.strict_json import shown

if TYPE_CHECKING:
    import numpy.typing as npt

    from penstock.compute.kernels import I64, U8
    from penstock.packed_format.layout import Cut

    U64 = npt.NDArray[np.uint64]

RECORD = np.dtype([("fine_bytes", "<u4"), ("fine_hash", "<u8"), ("coarse_hash", "<u8")])
"""An entry of the table of chunks."""

SMALL_BYTES = 1 << 18
"""Of a matrix that is stored as it is although it could be larger: two streams are worth more weights."""

PACK_AGAIN = (
    "Copy the file from a sound copy, or delete the model (`penstock rm NAME`, or its directory) and pull or pack it "
    "again; `penstock verify` lists all damage."
)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensor:
    """Where the streams of a tensor lie, by its name in the original file.

    Chunk i has rows [i * rows_per_chunk, ...) of `rows`. `fine_begin` is where the fine or the raw stream begins in the
    file, `coarse_begin` where the coarse one does ("planes" only, else 0), and `fine_offsets`, int64 [n_chunks + 1],
    where each chunk begins in the fine or raw stream. `original_begin`: where the tensor begins in the original file.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    codec: Codec
    rows: int
    cols: int
    row_bytes: int
    rows_per_chunk: int
    coarse_begin: int
    fine_begin: int
    fine_offsets: I64
    coarse_hashes: U64
    fine_hashes: U64
    original_begin: int
    coarse_end: int = 0
    """Bytes of the coarse stream's chunks, with what fills up the last one."""

    @property
    def n_chunks(self) -> int:
        return len(self.fine_hashes)

    @property
    def streams(self) -> tuple[str, ...]:
        """Their names in the file, the coarse one first."""
        return stream_names(self.name, self.codec)

    @property
    def in_tiers(self) -> bool:
        """Whether it is stored in two streams, the coarse and the fine tier; else as it is."""
        return self.codec == "planes"

    @property
    def coarse_bytes(self) -> int:
        """Of the coarse tier; 0 where there is none."""
        return self.coarse_extent(0, self.n_chunks).nbytes if self.in_tiers else 0

    @property
    def nbytes(self) -> int:
        """Of all streams."""
        return self.coarse_bytes + int(self.fine_offsets[-1])

    @property
    def draft_bytes(self) -> int:
        """Of what there is to guess with: the coarse tier, or all of a small matrix; 0 where there is nothing."""
        if self.in_tiers:
            return self.coarse_bytes
        return self.nbytes if self.nbytes <= SMALL_BYTES else 0

    @property
    def original_nbytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def chunk_bytes(self) -> int:
        """Of all chunks but the last, in the original file."""
        return self.rows_per_chunk * self.row_bytes

    def rows_in_chunk(self, chunk: int) -> int:
        return min(self.rows_per_chunk, self.rows - chunk * self.rows_per_chunk)

    def packed_rows(self, begin: int, end: int, coarse: U8, fine: U8) -> PackedRows:
        """Chunks [begin, end) for the kernels, given the bytes of their extents in both tiers, which stay alive."""
        return PackedRows(
            rows=min(end * self.rows_per_chunk, self.rows) - begin * self.rows_per_chunk,
            cols=self.cols,
            rows_per_chunk=self.rows_per_chunk,
            coarse=coarse,
            fine=fine,
            fine_offsets=self.fine_offsets[begin : end + 1] - self.fine_offsets[begin],
        )

    def chunks(self, begin: int, end: int) -> PackedTensor:
        """Chunks [begin, end) as a tensor of their own, by the same name and shape."""
        first, coarse = begin * self.rows_per_chunk, self.coarse_extent(begin, end) if self.in_tiers else None
        return replace(
            self,
            rows=min(end * self.rows_per_chunk, self.rows) - first,
            coarse_begin=0 if coarse is None else coarse.offset,
            coarse_end=0 if coarse is None else coarse.nbytes,
            fine_begin=self.fine_extent(begin, end).offset,
            fine_offsets=self.fine_offsets[begin : end + 1] - self.fine_offsets[begin],
            coarse_hashes=self.coarse_hashes[begin:end],
            fine_hashes=self.fine_hashes[begin:end],
            original_begin=self.original_begin + first * self.row_bytes,
        )

    def coarse_nbytes(self, chunk: int) -> int:
        """Of a chunk of the coarse stream, padding included."""
        return self.coarse_extent(chunk, chunk + 1).nbytes

    def fine_nbytes(self, chunk: int) -> int:
        """Of a chunk of the fine or raw stream, padding included."""
        return int(self.fine_offsets[chunk + 1] - self.fine_offsets[chunk])

    def coarse_extent(self, begin: int, end: int) -> Extent:
        """Where the coarse bytes of chunks [begin, end) lie."""
        whole = codec.coarse_bytes(self.rows_per_chunk, self.cols)
        stop = self.coarse_end if end * self.rows_per_chunk >= self.rows else end * whole
        return Extent(self.path, self.coarse_begin + begin * whole, stop - begin * whole)

    def fine_extent(self, begin: int, end: int) -> Extent:
        """Where the fine or raw bytes of chunks [begin, end) lie."""
        first, last = int(self.fine_offsets[begin]), int(self.fine_offsets[end])
        return Extent(self.path, self.fine_begin + first, last - first)

    def chunks_with(self, begin: int, end: int) -> tuple[int, int]:
        """The chunks, from the first up to before the second, that hold bytes [begin, end) of the original tensor."""
        return begin // self.chunk_bytes, -(-end // self.chunk_bytes)

    def unpadded(self, begin: int, end: int, data: U8) -> U8:
        """The original bytes in `data`, which are raw chunks [begin, end) as they are stored; a copy of several."""
        parts = []
        for chunk in range(begin, end):
            at = int(self.fine_offsets[chunk] - self.fine_offsets[begin])
            parts.append(data[at : at + self.rows_in_chunk(chunk) * self.row_bytes])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def check_coarse(self, chunk: int, data: U8) -> None:
        """Raises ChecksumError where `data` is not the chunk that was written."""
        if xxhash.xxh3_64_intdigest(data.data) != int(self.coarse_hashes[chunk]):
            self._fail(chunk, self.coarse_extent(chunk, chunk + 1), "coarse")

    def check_fine(self, chunk: int, data: U8) -> None:
        """As check_coarse, of the fine or raw stream."""
        if xxhash.xxh3_64_intdigest(data.data) != int(self.fine_hashes[chunk]):
            self._fail(chunk, self.fine_extent(chunk, chunk + 1), "fine" if self.in_tiers else "raw")

    def _fail(self, chunk: int, extent: Extent, stream: str) -> NoReturn:
        rows = f"rows {chunk * self.rows_per_chunk:,} and on, {stream}"
        where = f"{self.path}: tensor {shown(self.name)}, {extent.nbytes:,} bytes at offset {extent.offset:,} ({rows})"
        raise ChecksumError(f"{where}: the checksum does not match: the file is damaged", PACK_AGAIN)


class ChunkTable:
    """Of all chunks of a file, or of some: their sizes in the fine or raw stream, and their hashes."""

    def __init__(self, records: npt.NDArray[np.void]) -> None:
        """`records`: of the type RECORD."""
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(records["fine_bytes"], dtype=np.int64)])
        """int64 [chunks + 1]: where each begins, if all are one after the other."""
        self.coarse_hashes = records["coarse_hash"].astype(np.uint64)
        self.fine_hashes = records["fine_hash"].astype(np.uint64)

    def __len__(self) -> int:
        return len(self.fine_hashes)


def place(
    tensor: TensorInfo,
    how: Cut,
    path: Path,
    rows_per_chunk: int,
    coarse_begin: int,
    fine_begin: int,
    table: ChunkTable,
    chunks: slice,
) -> PackedTensor:
    """The packed form, in the file `path`, of a tensor of the original file, which has these chunks of a table."""
    return PackedTensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        path=path,
        codec=how.codec,
        rows=how.rows,
        cols=how.cols,
        row_bytes=how.row_bytes,
        rows_per_chunk=rows_per_chunk,
        coarse_begin=coarse_begin,
        fine_begin=fine_begin,
        fine_offsets=table.offsets[chunks.start : chunks.stop + 1] - table.offsets[chunks.start],
        coarse_hashes=table.coarse_hashes[chunks],
        fine_hashes=table.fine_hashes[chunks],
        original_begin=tensor.begin,
        coarse_end=coarse_stream_bytes(how.rows, how.cols, rows_per_chunk) if how.in_tiers else 0,
    )
