"""How the packed format cuts tensors into rows, chunks and streams (docs/format.md, "Streams")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal

from penstock.architectures.names import stacked_part
from penstock.compute import codec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.safetensors_header import DType, TensorInfo

Codec = Literal["planes", "raw"]

_SHAPES = 256
"""A model has few, of many tensors."""
CHUNK_ALIGNMENT = 64
STREAM_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tensor is cut: into `rows` rows of `cols` elements, which are `row_bytes` bytes."""

    codec: Codec
    rows: int
    cols: int
    row_bytes: int
    whole: int = 0
    """Rows that a whole number of chunks has; 0: any."""

    @property
    def in_tiers(self) -> bool:
        """Whether it is stored in two streams; else as it is."""
        return self.codec == "planes"

    def rows_per_chunk(self, single_rows: bool = False) -> int:
        """As the writer chooses it: few where `single_rows` are read; no reader takes more than for whole matrices."""
        most = codec.rows_per_chunk(self.cols, single_rows)
        return (
            next(rows for rows in range(min(most, self.whole), 0, -1) if self.whole % rows == 0) if self.whole else most
        )

    def allows(self, rows_per_chunk: int) -> bool:
        """Whether a file may have so many rows in a chunk."""
        most = codec.rows_per_chunk(self.cols)
        return 0 < rows_per_chunk <= most and (not self.whole or self.whole % rows_per_chunk == 0)

    def n_chunks(self, rows_per_chunk: int) -> int:
        return -(-self.rows // rows_per_chunk)

    def most_fine_bytes(self, rows_per_chunk: int) -> int:
        """What a chunk of the fine or raw stream may take at most, a stream's padding included."""
        if not self.in_tiers:
            return padded(rows_per_chunk * self.row_bytes, CHUNK_ALIGNMENT)
        return codec.most_fine_bytes(rows_per_chunk, self.cols) + STREAM_ALIGNMENT - CHUNK_ALIGNMENT


def version_for(tensors: Iterable[TensorInfo]) -> int:
    """The lowest version that can hold such tensors: 2 where one has the matrices of several experts."""
    return 2 if any(stacked_part(tensor.name, tensor.shape) for tensor in tensors) else 1


def cut(tensor: TensorInfo, version: int) -> Cut:
    """How a version of the format cuts a tensor of this dtype and shape."""
    return _cut(tensor.dtype, tensor.shape, tensor.nbytes, version)


@lru_cache(_SHAPES)
def _cut(dtype: DType, shape: tuple[int, ...], nbytes: int, version: int) -> Cut:
    if version > 1 and len(shape) == 3 and shape[0]:
        one = _cut(dtype, shape[1:], nbytes // shape[0], version)
        if one.row_bytes > 1:
            half = one.rows // 2 if one.rows % 2 == 0 else one.rows
            return replace(one, rows=shape[0] * one.rows, whole=half)
    rows, cols = shape if len(shape) == 2 else (1, prod(shape))
    if not rows or not 0 < cols <= codec.MOST_COLUMNS or cols * dtype.bits % 8:
        return Cut("raw", nbytes, 1, 1)
    planes = codec.is_packed(shape, dtype.value)
    return Cut("planes" if planes else "raw", rows, cols, cols * dtype.bits // 8)


@lru_cache(_SHAPES)
def coarse_stream_bytes(rows: int, cols: int, rows_per_chunk: int) -> int:
    """Size of a matrix's coarse stream."""
    whole, rest = divmod(rows, rows_per_chunk)
    nbytes = whole * codec.coarse_bytes(rows_per_chunk, cols) + (codec.coarse_bytes(rest, cols) if rest else 0)
    return padded(nbytes, STREAM_ALIGNMENT)


def stream_names(tensor: str, how: Codec) -> tuple[str, ...]:
    """The names of a tensor's streams in a packed file."""
    return (f"{tensor}.coarse", f"{tensor}.fine") if how == "planes" else (f"{tensor}.raw",)


def padded(nbytes: int, alignment: int) -> int:
    """`nbytes`, rounded up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment
