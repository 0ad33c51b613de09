"""Single rows of a matrix as the original checkpoint has them, read by themselves: how embeddings come.

Of a packed matrix a row's whole chunk is read, since that is what a checksum covers; an embedding has small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.checkpoints.packed import PackedTensor
from penstock.compute.codec import MalformedRow, PackedRows, decode
from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.weights.pieces import malformed

if TYPE_CHECKING:
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.checkpoints.format import TensorInfo
    from penstock.compute.kernels import I64, U8


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
    return _PackedRows(tensor, files) if isinstance(tensor, PackedTensor) else _PlainRows(tensor, files)


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
class _PackedRows:
    tensor: PackedTensor
    files: Files

    @property
    def row_bytes(self) -> int:
        return self.tensor.row_bytes

    def batches(self, rows: I64) -> list[slice]:
        """The rows of each chunk."""
        begins = np.flatnonzero(np.diff(rows // self.tensor.rows_per_chunk, prepend=-1))
        return [slice(int(b), int(e)) for b, e in zip(begins, [*begins[1:], len(rows)], strict=True)]

    def read(self, rows: I64, batch: slice, out: U8) -> None:
        tensor = self.tensor
        chunk = int(rows[batch.start]) // tensor.rows_per_chunk
        first, count = chunk * tensor.rows_per_chunk, tensor.rows_in_chunk(chunk)
        fine = self._read(tensor.fine_extent(chunk, chunk + 1))
        tensor.check_fine(chunk, fine)
        if tensor.codec == "raw":
            out[batch] = fine[: count * self.row_bytes].reshape(count, -1)[rows[batch] - first]
            return
        coarse = self._read(tensor.coarse_extent(chunk, chunk + 1))
        tensor.check_coarse(chunk, coarse)
        packed = PackedRows(
            count, tensor.cols, tensor.rows_per_chunk, coarse, fine, np.array([0, fine.nbytes], np.int64)
        )
        for i in range(batch.start, batch.stop):
            row = int(rows[i]) - first
            try:
                decode(packed, row, row + 1, out[i])
            except MalformedRow as error:
                raise malformed(tensor, first + error.row) from error

    def _read(self, extent: Extent) -> U8:
        return self.files.read(extent, aligned_buffer(extent.nbytes))
