"""Pieces of matrices: what is read, kept in memory and multiplied at a time, of plain and of packed checkpoints.

A piece is a run of rows. It has one part, its bytes, or two: the coarse and the fine tier of packed weights.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.compute.codec import MalformedRow, PackedRows, decode
from penstock.compute.indexed import IndexedRows, likely_bytes
from penstock.disk.files import Extent
from penstock.errors import FormatError
from penstock.gguf.stored import RestoredTensor, halves_of_pairs, pairs_of_halves
from penstock.packed_format.tensor import PackedTensor
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, U8, Kernels
    from penstock.safetensors_header import TensorInfo


class Piece(Protocol):
    """Rows `rows` of the matrix `name`; `extents` are its parts' places, the coarse tier first where there is one."""

    @property
    def drafts(self) -> bool:
        """Whether the first part alone is enough to guess with: the coarse tier, or a small matrix as it is."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> slice: ...
    @property
    def extents(self) -> tuple[Extent, ...]: ...
    def check(self, part: int, data: U8) -> None:
        """Raise ChecksumError if these are not the part's bytes."""

    def loaded(self, parts: Sequence[U8]) -> StoredData:
        """The piece with its parts in memory."""

    def draft(self, part: U8) -> CoarseBytes | PlainData:
        """The first part of a piece that `drafts`, in memory."""

    @property
    def likely_indexed_bytes(self) -> int:
        """What the piece will take in indexed rows; 0 where it stays as it is."""

    def indexed(self, parts: Sequence[U8], kernels: Kernels) -> PieceData:
        """The piece in indexed rows. Raises FormatError."""


class PieceData(Protocol):
    """A piece that is in memory."""

    @property
    def rows(self) -> slice: ...
    @property
    def nbytes(self) -> int: ...
    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        """out[n, rows] = x[n, k] @ weights.T (+ bias) (+ out). Raises FormatError for packed bytes without meaning."""


class StoredData(PieceData, Protocol):
    """A piece as it is stored."""

    def plain(self) -> tuple[U8, str]:
        """The weights as the checkpoint has them, row by row, and their type. Raises FormatError."""


@dataclass(frozen=True, slots=True)
class PlainData:
    """Rows as they are, in `dtype`."""

    rows: slice
    bytes: U8
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul(x, self.bytes, self.dtype, out, bias=bias, accumulate=accumulate)

    def plain(self) -> tuple[U8, str]:
        return self.bytes, self.dtype


@dataclass(frozen=True, slots=True)
class PairedData:
    """Whole heads of a matrix whose rows lie in pairs: what a product gives is put in order, not they."""

    rows: slice
    bytes: U8
    dtype: str
    tensor: RestoredTensor

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        head_rows = self.tensor.head_rows
        paired = pairs_of_halves(out.T, head_rows).T if accumulate else np.empty_like(out)
        paired = np.ascontiguousarray(paired)
        bias = None if bias is None else pairs_of_halves(bias, head_rows)
        kernels.matmul(x, self.bytes, self.dtype, paired, bias=bias, accumulate=accumulate)
        out[:] = halves_of_pairs(paired.T, head_rows).T

    def plain(self) -> tuple[U8, str]:
        return self.tensor.restored(self.bytes), self.dtype


@dataclass(frozen=True, slots=True)
class PackedData:
    """Rows in both tiers."""

    tensor: PackedTensor
    rows: slice
    packed: PackedRows

    @property
    def nbytes(self) -> int:
        return self.packed.coarse.nbytes + self.packed.fine.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        try:
            kernels.matmul_packed(x, self.packed, out, bias=bias, accumulate=accumulate)
        except MalformedRow as error:
            raise malformed(self.tensor, self.rows.start + error.row) from error

    def plain(self) -> tuple[U8, str]:
        out = page_array(self.packed.rows * self.tensor.row_bytes)
        try:
            decode(self.packed, 0, self.packed.rows, out)
        except MalformedRow as error:
            raise malformed(self.tensor, self.rows.start + error.row) from error
        return out, self.tensor.dtype.value


@dataclass(frozen=True, slots=True)
class IndexedData:
    """Rows in the form that is quickest to multiply with."""

    rows: slice
    indexed: IndexedRows

    @property
    def nbytes(self) -> int:
        return self.indexed.data.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul_indexed(x, self.indexed, out, bias=bias, accumulate=accumulate)


@dataclass(frozen=True, slots=True, eq=False)
class CoarseBytes:
    """The coarse chunks of rows `rows` of a matrix with `cols` columns."""

    rows: slice
    cols: int
    rows_per_chunk: int
    bytes: U8


@dataclass(frozen=True, slots=True)
class PlainPiece:
    """Rows of a matrix in a plain safetensors file, which has no checksums."""

    tensor: TensorInfo
    rows: slice
    drafts = False

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def extents(self) -> tuple[Extent, ...]:
        row_bytes = self.tensor.nbytes // self.tensor.shape[0]
        begin, count = self.rows.start, self.rows.stop - self.rows.start
        return (Extent(self.tensor.path, self.tensor.begin + begin * row_bytes, count * row_bytes),)

    def check(self, part: int, data: U8) -> None:
        pass

    def loaded(self, parts: Sequence[U8]) -> PlainData:
        return PlainData(self.rows, parts[0], self.tensor.dtype.value)

    def draft(self, part: U8) -> PlainData:
        return self.loaded([part])

    @property
    def likely_indexed_bytes(self) -> int:
        return 0

    def indexed(self, parts: Sequence[U8], kernels: Kernels) -> PlainData:
        return self.loaded(parts)


@dataclass(frozen=True, slots=True)
class PairedPiece(PlainPiece):
    """Whole heads of a matrix whose rows lie in pairs (gguf/stored.py)."""

    tensor: RestoredTensor

    def loaded(self, parts: Sequence[U8]) -> PairedData:  # type: ignore[override]
        return PairedData(self.rows, parts[0], self.tensor.dtype.value, self.tensor)


@dataclass(frozen=True)
class PackedPiece:
    """Chunks [begin, end) of a tensor in two tiers."""

    tensor: PackedTensor
    begin: int
    end: int
    drafts = True

    @property
    def name(self) -> str:
        return self.tensor.name

    @cached_property
    def rows(self) -> slice:
        step = self.tensor.rows_per_chunk
        return slice(self.begin * step, min(self.end * step, self.tensor.rows))

    @cached_property
    def extents(self) -> tuple[Extent, ...]:
        return self.tensor.coarse_extent(self.begin, self.end), self.tensor.fine_extent(self.begin, self.end)

    def check(self, part: int, data: U8) -> None:
        tensor = self.tensor
        check = (tensor.check_coarse, tensor.check_fine)[part]
        nbytes_of = (tensor.coarse_nbytes, tensor.fine_nbytes)[part]
        _check_chunks(check, nbytes_of, self.begin, self.end, data)

    def loaded(self, parts: Sequence[U8]) -> PackedData:
        coarse, fine = parts
        packed = self.tensor.packed_rows(self.begin, self.end, coarse, fine)
        return PackedData(self.tensor, self.rows, packed)

    def draft(self, part: U8) -> CoarseBytes:
        return CoarseBytes(self.rows, self.tensor.cols, self.tensor.rows_per_chunk, part)

    @property
    def likely_indexed_bytes(self) -> int:
        return likely_bytes(self.rows.stop - self.rows.start, self.tensor.cols)

    def indexed(self, parts: Sequence[U8], kernels: Kernels) -> IndexedData:
        data = self.loaded(parts)
        plain, _ = data.plain()
        return IndexedData(self.rows, kernels.index(plain, data.packed.rows, self.tensor.cols))


@dataclass(frozen=True)
class RawPiece:
    """Rows of a matrix that a packed file stores raw: the chunks that hold them.

    Where a row is too long for the format, chunks begin and end amid rows; those at the ends of a piece are then read
    for its neighbours too.
    """

    tensor: PackedTensor
    rows: slice

    @property
    def drafts(self) -> bool:
        return self.tensor.draft_bytes > 0

    @property
    def name(self) -> str:
        return self.tensor.name

    @cached_property
    def extents(self) -> tuple[Extent, ...]:
        return (self.tensor.fine_extent(*self._chunks),)

    def check(self, part: int, data: U8) -> None:
        _check_chunks(self.tensor.check_fine, self.tensor.fine_nbytes, *self._chunks, data)

    def loaded(self, parts: Sequence[U8]) -> PlainData:
        begin, end = self._bytes
        data = self.tensor.unpadded(*self._chunks, parts[0])
        skip = begin - self._chunks[0] * self.tensor.chunk_bytes
        return PlainData(self.rows, data[skip : skip + end - begin], self.tensor.dtype.value)

    def draft(self, part: U8) -> PlainData:
        return self.loaded([part])

    @property
    def likely_indexed_bytes(self) -> int:
        return 0

    def indexed(self, parts: Sequence[U8], kernels: Kernels) -> PlainData:
        return self.loaded(parts)

    @property
    def _bytes(self) -> tuple[int, int]:
        """Of the original tensor: the first, and the one after the last."""
        row_bytes = self.tensor.original_nbytes // self.tensor.shape[0]
        return self.rows.start * row_bytes, self.rows.stop * row_bytes

    @cached_property
    def _chunks(self) -> tuple[int, int]:
        return self.tensor.chunks_with(*self._bytes)


def _check_chunks(
    check: Callable[[int, U8], None], nbytes_of: Callable[[int], int], begin: int, end: int, data: U8
) -> None:
    """Check that `data` are chunks [begin, end), each of which has `nbytes_of` bytes."""
    offset = 0
    for chunk in range(begin, end):
        nbytes = nbytes_of(chunk)
        check(chunk, data[offset : offset + nbytes])
        offset += nbytes


def malformed(tensor: PackedTensor, row: int) -> FormatError:
    """What to raise where the checksums hold and yet a row's bytes mean nothing."""
    return FormatError(
        f"{tensor.path}: tensor {tensor.name}, row {row}: the packed bytes have no meaning, although their checksum "
        "holds: they were not written by Penstock, or by a defective one.",
        "Pack or pull the model again.",
    )


def split(tensor: Tensor, piece_bytes: int) -> list[Piece]:
    """The pieces of a matrix, in order. A part has at most `piece_bytes`, where a row or a chunk allows it."""
    if isinstance(tensor, RestoredTensor) and tensor.head_rows:
        heads = _row_runs(tensor.shape[0] // tensor.head_rows, tensor.nbytes, piece_bytes)
        rows = tensor.head_rows
        return [PairedPiece(tensor, slice(run.start * rows, run.stop * rows)) for run in heads]
    if not isinstance(tensor, PackedTensor):
        return [PlainPiece(tensor, rows) for rows in _row_runs(tensor.shape[0], tensor.nbytes, piece_bytes)]
    if tensor.in_tiers:
        return [PackedPiece(tensor, begin, end) for begin, end in _chunk_runs(tensor, piece_bytes)]
    return [RawPiece(tensor, rows) for rows in _raw_runs(tensor, piece_bytes)]


def largest_chunk(tensors: Sequence[Tensor]) -> int:
    """Bytes of the largest part that a piece cannot be smaller than, where that is more than a row: in packed tensors,
    and in those whose rows lie in pairs; else 0."""
    return max(map(_largest_part, tensors), default=0)


def _largest_part(tensor: Tensor) -> int:
    if isinstance(tensor, RestoredTensor):
        return tensor.head_rows * (tensor.nbytes // tensor.shape[0])
    if not isinstance(tensor, PackedTensor):
        return 0
    if not tensor.in_tiers:
        return max((piece.extents[0].nbytes for piece in split(tensor, 1)), default=0)
    offsets: list[int] = tensor.fine_offsets.tolist()
    fine = max(end - begin for begin, end in pairwise(offsets))
    return max(fine, tensor.coarse_nbytes(0), tensor.coarse_nbytes(tensor.n_chunks - 1))


def _row_runs(height: int, nbytes: int, piece_bytes: int) -> list[slice]:
    """Runs of the rows of a matrix of `nbytes`."""
    step = max(1, piece_bytes * height // max(1, nbytes))
    return [slice(begin, min(begin + step, height)) for begin in range(0, height, step)]


def _raw_runs(tensor: PackedTensor, piece_bytes: int) -> list[slice]:
    """The rows of each chunk, which padding parts from the next one; runs of rows that are longer than chunks."""
    height, step = tensor.shape[0], tensor.rows_per_chunk
    if tensor.rows > height:  # each byte counts as a row
        return _row_runs(height, tensor.original_nbytes, piece_bytes)
    return [slice(begin, min(begin + step, height)) for begin in range(0, height, step)]


def _chunk_runs(tensor: PackedTensor, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """The longest runs of chunks whose fine tier, the larger of the two, has at most `piece_bytes`."""
    offsets, begin = tensor.fine_offsets, 0
    while begin < tensor.n_chunks:
        end = max(begin + 1, bisect_right(offsets, int(offsets[begin]) + piece_bytes) - 1)
        yield begin, end
        begin = end
