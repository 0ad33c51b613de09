"""Pieces of matrices: what is read, kept in memory and multiplied at a time, of plain and of packed checkpoints.

A piece is a run of rows. It has one part, its bytes, or two: the coarse and the fine tier of packed weights.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeGuard

from penstock.checkpoints.packed import PackedTensor
from penstock.compute.codec import MalformedRow, PackedRows, decode
from penstock.compute.indexed import IndexedRows, likely_bytes
from penstock.disk.files import Extent
from penstock.errors import FormatError
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.checkpoints.format import TensorInfo
    from penstock.compute.kernels import F32, I64, U8, Kernels


SMALL_BYTES = 1 << 18
"""Of a matrix that is stored as it is although it could be larger: two streams are worth more weights."""


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


@dataclass(frozen=True)
class PackedPiece:
    """Chunks [begin, end) of a tensor in a packed file; of one that is stored raw, a single chunk."""

    tensor: PackedTensor
    begin: int
    end: int

    @property
    def drafts(self) -> bool:
        return self.tensor.codec == "planes" or self.tensor.nbytes <= SMALL_BYTES

    @property
    def name(self) -> str:
        return self.tensor.name

    @cached_property
    def rows(self) -> slice:
        step = self.tensor.rows_per_chunk
        return slice(self.begin * step, min(self.end * step, self.tensor.rows))

    @cached_property
    def extents(self) -> tuple[Extent, ...]:
        fine = self.tensor.fine_extent(self.begin, self.end)
        return (fine,) if self.tensor.codec == "raw" else (self.tensor.coarse_extent(self.begin, self.end), fine)

    def check(self, part: int, data: U8) -> None:
        coarse = part == 0 and len(self.extents) == 2
        check = self.tensor.check_coarse if coarse else self.tensor.check_fine
        offset = 0
        for chunk in range(self.begin, self.end):
            nbytes = (self.tensor.coarse_extent if coarse else self.tensor.fine_extent)(chunk, chunk + 1).nbytes
            check(chunk, data[offset : offset + nbytes])
            offset += nbytes

    def loaded(self, parts: Sequence[U8]) -> PlainData | PackedData:
        tensor, count = self.tensor, self.rows.stop - self.rows.start
        if tensor.codec == "raw":
            return PlainData(self.rows, parts[0][: count * tensor.row_bytes], tensor.dtype.value)
        coarse, fine = parts
        packed = PackedRows(count, tensor.cols, tensor.rows_per_chunk, coarse, fine, self._fine_offsets)
        return PackedData(tensor, self.rows, packed)

    def draft(self, part: U8) -> CoarseBytes | PlainData:
        tensor = self.tensor
        if tensor.codec == "raw":
            return PlainData(
                self.rows, part[: (self.rows.stop - self.rows.start) * tensor.row_bytes], tensor.dtype.value
            )
        return CoarseBytes(self.rows, tensor.cols, tensor.rows_per_chunk, part)

    @property
    def likely_indexed_bytes(self) -> int:
        if self.tensor.codec == "raw":
            return 0
        return likely_bytes(self.rows.stop - self.rows.start, self.tensor.cols)

    def indexed(self, parts: Sequence[U8], kernels: Kernels) -> PieceData:
        data = self.loaded(parts)
        if not isinstance(data, PackedData):
            return data
        plain, _ = data.plain()
        return IndexedData(self.rows, kernels.index(plain, data.packed.rows, self.tensor.cols))

    @cached_property
    def _fine_offsets(self) -> I64:
        offsets = self.tensor.fine_offsets
        return offsets[self.begin : self.end + 1] - offsets[self.begin]  # type: ignore[no-any-return]


def malformed(tensor: PackedTensor, row: int) -> FormatError:
    """What to raise where the checksums hold and yet a row's bytes mean nothing."""
    return FormatError(
        f"{tensor.path}: tensor {tensor.name}, row {row}: the packed bytes have no meaning, although their checksum "
        "holds: they were not written by Penstock, or by a defective one.",
        "Pack or pull the model again.",
    )


def split(tensors: Sequence[Tensor], piece_bytes: int) -> list[Piece]:
    """The pieces of matrices of equal height, alternating as zip() walks them: equal runs of rows in each.

    A part has at most `piece_bytes`, where a row or a chunk allows it.
    """
    cuts = _chunk_runs(tensors, piece_bytes) or _row_runs(tensors, piece_bytes)
    return [_piece(tensor, rows) for rows in cuts for tensor in tensors]


def largest_chunk(tensors: Sequence[Tensor]) -> int:
    """Bytes of the largest part that a piece cannot be smaller than, in packed tensors; 0 where none is packed."""
    sizes = (int((t.fine_offsets[1:] - t.fine_offsets[:-1]).max()) for t in tensors if _has_chunks(t))
    return max(sizes, default=0)


def _has_chunks(tensor: Tensor) -> TypeGuard[PackedTensor]:
    return isinstance(tensor, PackedTensor) and tensor.n_chunks > 0


def _piece(tensor: Tensor, rows: slice) -> Piece:
    if isinstance(tensor, PackedTensor):
        step = tensor.rows_per_chunk
        return PackedPiece(tensor, rows.start // step, -(-rows.stop // step))
    return PlainPiece(tensor, rows)


def _row_runs(tensors: Sequence[Tensor], piece_bytes: int) -> list[slice]:
    height = tensors[0].shape[0]
    step = max(1, min(piece_bytes * height // max(1, tensor.nbytes) for tensor in tensors))
    return [slice(begin, min(begin + step, height)) for begin in range(0, height, step)]


def _chunk_runs(tensors: Sequence[Tensor], piece_bytes: int) -> list[slice]:
    """Runs of whole chunks; nothing where no tensor has chunks."""
    chunked = [tensor for tensor in tensors if _has_chunks(tensor)]
    if not chunked:
        return []
    height, step = chunked[0].rows, chunked[0].rows_per_chunk
    whole = len(chunked) == len(tensors) and all(tensor.codec == "planes" for tensor in chunked)
    runs = list(_runs(chunked, piece_bytes)) if whole else [(c, c + 1) for c in range(chunked[0].n_chunks)]
    return [slice(begin * step, min(end * step, height)) for begin, end in runs]


def _runs(tensors: Sequence[PackedTensor], piece_bytes: int) -> Iterator[tuple[int, int]]:
    """The longest runs of chunks of which no tensor's fine tier, the larger of the two, has more than `piece_bytes`."""
    begin = 0
    while begin < tensors[0].n_chunks:
        ends = (bisect_right(t.fine_offsets, int(t.fine_offsets[begin]) + piece_bytes) - 1 for t in tensors)
        end = max(begin + 1, min(ends))
        yield begin, end
        begin = end
