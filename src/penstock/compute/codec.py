"""Packing BF16 matrices chunk by chunk, and unpacking them (docs/format.md).

Goals: the sizes that the format fixes; one chunk in, bytes out; rows back out of bytes that may be anything.
Non-goals: files, checksums, threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from penstock import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    U8 = npt.NDArray[np.uint8]
    I64 = npt.NDArray[np.int64]

LEAST_WEIGHTS = 65_536
"""Smaller matrices are not worth two streams."""

LEAST_COLUMNS = 256
"""Rows of fewer weights would take more for what each row has once than packing saves."""

MOST_COLUMNS = 1 << 18
"""Rows of more weights are not packed, so that decoders know how much memory one takes at most."""

ALIGNMENT = 64
"""Chunks are filled up with zeros to a multiple of so many bytes."""

_CHUNK_BYTES = 1 << 20
_CHUNK_BYTES_OF_SINGLE_ROWS = 32 << 10
_GROUP = 64
_RAW_ROW = 1 << 31


class MalformedRow(ValueError):  # noqa: N818
    """Packed bytes that break the format, in row `row` of those given."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of packed weights breaks the format")
        self.row = row


PackedRows = _core.PackedRows
"""A run of whole chunks of one packed matrix, in memory; arrays that cannot be that are a ValueError."""


def is_packed(shape: Sequence[int], dtype_name: str) -> bool:
    """Whether a tensor is stored in two streams; all others are stored raw. dtype_name is that of safetensors."""
    if dtype_name != "BF16" or len(shape) != 2:
        return False
    rows, cols = shape
    return rows * cols >= LEAST_WEIGHTS and LEAST_COLUMNS <= cols <= MOST_COLUMNS


def rows_per_chunk(cols: int, single_rows: bool = False) -> int:
    """Rows in a chunk of a matrix with rows of `cols` BF16 weights; few where `single_rows` of it are read."""
    chunk_bytes = _CHUNK_BYTES_OF_SINGLE_ROWS if single_rows else _CHUNK_BYTES
    return max(1, chunk_bytes // (2 * cols))


@lru_cache(256)
def coarse_bytes(rows: int, cols: int) -> int:
    """Bytes of a coarse chunk, with padding."""
    groups = -(-cols // _GROUP)
    return _aligned(_up(rows, 8) + rows * groups * 24)


def most_fine_bytes(rows: int, cols: int) -> int:
    """Bytes that a fine chunk may take at most, with padding."""
    return _aligned(4 * (rows + 1) + 2 * rows * cols + 8)


def row_offsets_bytes(rows: int) -> int:
    """How much of a fine chunk, from its beginning on, says where its rows are."""
    return 4 * (rows + 1)


def row_extent(offsets: npt.NDArray[np.uint32], row: int) -> tuple[int, int]:
    """The bytes [begin, end) of a fine chunk that hold a row's data; `offsets` as the chunk has them."""
    return int(offsets[row]) & ~_RAW_ROW, int(offsets[row + 1]) & ~_RAW_ROW


def single_row(coarse: U8, rows: int, cols: int, row: int, offsets: npt.NDArray[np.uint32], data: U8) -> PackedRows:
    """One row of a chunk as a chunk of its own, from the coarse chunk and the row's own data of the fine one."""
    words = -(-cols // _GROUP) * 24
    begin = _up(rows, 8) + row * words
    own_coarse = np.zeros(8 + words, np.uint8)
    own_coarse[0], own_coarse[8:] = coarse[row], coarse[begin : begin + words]
    fine = np.zeros(8 + len(data) + 8, np.uint8)
    fine[:8].view(np.uint32)[:] = 8 | (int(offsets[row]) & _RAW_ROW), 8 + len(data)
    fine[8 : 8 + len(data)] = data
    return PackedRows(
        rows=1,
        cols=cols,
        rows_per_chunk=1,
        coarse=own_coarse,
        fine=fine,
        fine_offsets=np.array([0, len(fine)], np.int64),
    )


def encode(weights: U8, rows: int, cols: int, coarse: U8, fine: U8) -> int:
    """Pack one chunk: rows * cols BF16 weights, as bytes at any alignment.

    Fills coarse[:coarse_bytes(rows, cols)] and fine[:n], and returns n, a multiple of 64. `fine` must have room for
    most_fine_bytes(rows, cols). The bytes depend on the weights alone. Runs in the calling thread, without the
    interpreter's lock. Raises ValueError for arrays of the wrong size.
    """
    return _core.encode_chunk(weights, rows, cols, coarse, fine)


def decode(packed: PackedRows, begin: int, end: int, out: U8) -> None:
    """Unpack rows [begin, end) into `out`, BF16 bytes, row-major.

    Runs in the calling thread, without the interpreter's lock. Raises MalformedRow for bytes that break the format,
    and ValueError for arrays of the wrong size.
    """
    scratch = np.empty(_core.decoder_scratch_bytes(packed.cols), np.uint8)
    row = _core.decode_rows(packed, begin, end, out, scratch)
    if row is not None:
        raise MalformedRow(row)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _aligned(n: int) -> int:
    return _up(n, ALIGNMENT)
