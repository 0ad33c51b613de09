"""How the packed format cuts tensors into rows, chunks and streams (docs/format.md, "Streams")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal

from penstock.compute import codec

if TYPE_CHECKING:
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

    @property
    def in_tiers(self) -> bool:
        """Whether it is stored in two streams; else as it is."""
        return self.codec == "planes"

    def rows_per_chunk(self, single_rows: bool = False) -> int:
        """As the writer chooses it: few where `single_rows` are read; no reader takes more than for whole matrices."""
        return codec.rows_per_chunk(self.cols, single_rows)

    def n_chunks(self, rows_per_chunk: int) -> int:
        return -(-self.rows // rows_per_chunk)

    def most_fine_bytes(self, rows_per_chunk: int) -> int:
        """What a chunk of the fine or raw stream may take at most, a stream's padding included."""
        if not self.in_tiers:
            return padded(rows_per_chunk * self.row_bytes, CHUNK_ALIGNMENT)
        return codec.most_fine_bytes(rows_per_chunk, self.cols) + STREAM_ALIGNMENT - CHUNK_ALIGNMENT


def cut(tensor: TensorInfo) -> Cut:
    """How the format cuts a tensor of this dtype and shape."""
    return _cut(tensor.dtype, tensor.shape, tensor.nbytes)


@lru_cache(_SHAPES)
def _cut(dtype: DType, shape: tuple[int, ...], nbytes: int) -> Cut:
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
