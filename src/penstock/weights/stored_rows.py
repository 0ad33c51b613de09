"""Single rows of a matrix as the original checkpoint has them, read by themselves: how embeddings come.

Of a packed matrix a row's whole chunk is read, since that is what a checksum covers; an embedding has small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.compute.codec import MalformedRow, decode
from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.gguf.stored import RestoredTensor, read_original
from penstock.packed_format.tensor import PackedTensor
from penstock.weights.pieces import malformed

if TYPE_CHECKING:
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import I64, U8
    from penstock.safetensors_header import TensorInfo


class RowReader(Protocol):
    """Reads rows of one tensor; threads may share it."""

    @property
    def row_bytes(self) -> int: ...
    def batches(self, rows: I64) -> list[slice]:
        """Runs of `rows`, which ascend, that are best read together."""

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        """Read rows[batch] into out[batch], uint8 [n, row_bytes]. Raises ReadError, FormatError."""


def row_reader(tensor: Tensor, files: Files) -> RowReader:
    """A vector counts as one row."""
    if isinstance(tensor, RestoredTensor):
        return _RestoredRows(tensor, files)
    if not isinstance(tensor, PackedTensor):
        return _PlainRows(tensor, files)
    return _PackedRows(tensor, files) if tensor.in_tiers else _RawRows(tensor, files)


@dataclass(frozen=True, slots=True)
class _PlainRows:
    tensor: TensorInfo
    files: Files

    @property
    def row_bytes(self) -> int:
        return self.tensor.nbytes // (self.tensor.shape[0] if len(self.tensor.shape) > 1 else 1)

    def batches(self, rows: I64) -> list[slice]:
        return [slice(i, i + 1) for i in range(len(rows))]

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        nbytes = self.row_bytes
        buffer = aligned_buffer(nbytes)
        for i in range(batch.start, batch.stop):
            begin = self.tensor.begin + int(rows[i]) * nbytes
            out[i] = self.files.read(Extent(self.tensor.path, begin, nbytes), buffer)


@dataclass(frozen=True, slots=True)
class _RestoredRows(_PlainRows):
    """Rows of a tensor that a GGUF file stores otherwise than the checkpoint has it."""

    tensor: RestoredTensor

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        for i in range(batch.start, batch.stop):
            out[i] = read_original(self.tensor, int(rows[i]) * self.row_bytes, self.row_bytes, self.files)


@dataclass(frozen=True, slots=True)
class _PackedRows:
    """Rows in two tiers."""

    tensor: PackedTensor
    files: Files

    @property
    def row_bytes(self) -> int:
        return self.tensor.row_bytes

    def batches(self, rows: I64) -> list[slice]:
        """The rows of each chunk."""
        return _runs_of_equal(rows // self.tensor.rows_per_chunk)

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        tensor = self.tensor
        chunk = int(rows[batch.start]) // tensor.rows_per_chunk
        first = chunk * tensor.rows_per_chunk
        fine = _read(self.files, tensor.fine_extent(chunk, chunk + 1))
        tensor.check_fine(chunk, fine)
        coarse = _read(self.files, tensor.coarse_extent(chunk, chunk + 1))
        tensor.check_coarse(chunk, coarse)
        packed = tensor.packed_rows(chunk, chunk + 1, coarse, fine)
        for i in range(batch.start, batch.stop):
            row = int(rows[i]) - first
            try:
                decode(packed, row, row + 1, out[i])
            except MalformedRow as error:
                raise malformed(tensor, first + error.row) from error


@dataclass(frozen=True, slots=True)
class _RawRows:
    """Rows that a packed file stores raw; a row may have several chunks, if it is too long for the format."""

    tensor: PackedTensor
    files: Files

    @property
    def row_bytes(self) -> int:
        return self.tensor.original_nbytes // (self.tensor.shape[0] if len(self.tensor.shape) > 1 else 1)

    def batches(self, rows: I64) -> list[slice]:
        """The rows that begin in the same chunk."""
        return _runs_of_equal(rows * self.row_bytes // self.tensor.chunk_bytes)

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        tensor, nbytes = self.tensor, self.row_bytes
        first, stop = int(rows[batch.start]) * nbytes, (int(rows[batch.stop - 1]) + 1) * nbytes
        begin, end = tensor.chunks_with(first, stop)
        stored = _read(self.files, tensor.fine_extent(begin, end))
        for chunk in range(begin, end):
            at = int(tensor.fine_offsets[chunk] - tensor.fine_offsets[begin])
            tensor.check_fine(chunk, stored[at : at + tensor.fine_nbytes(chunk)])
        data = tensor.unpadded(begin, end, stored)
        for i in range(batch.start, batch.stop):
            at = int(rows[i]) * nbytes - begin * tensor.chunk_bytes
            out[i] = data[at : at + nbytes]


def _runs_of_equal(values: I64) -> list[slice]:
    """Where equal values, none of them negative, follow one another."""
    begins = np.flatnonzero(np.diff(values, prepend=-1))
    return [slice(int(b), int(e)) for b, e in zip(begins, [*begins[1:], len(values)], strict=True)]


def _read(files: Files, extent: Extent) -> U8:
    return files.read(extent, aligned_buffer(extent.nbytes))
