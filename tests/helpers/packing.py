"""Matrices to pack, and packing them, for the tests of the codec and of its kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.compute import codec

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


def gaussian(rows: int, cols: int, seed: int = 0, spread: float = 6) -> U16:
    """BF16 patterns of normal weights, each row with a scale 2^x of its own, x uniform in [-spread, spread]."""
    rng = np.random.default_rng([rows, cols, seed])
    scales = 2.0 ** rng.uniform(-spread, spread, (rows, 1))
    values = (rng.standard_normal((rows, cols)) * scales).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def encode(weights: U16) -> tuple[U8, U8]:
    """The coarse and the fine chunk; what lies beyond them must not have been touched."""
    rows, cols = weights.shape
    n_coarse, most_fine = codec.coarse_bytes(rows, cols), codec.most_fine_bytes(rows, cols)
    coarse, fine = np.full(n_coarse + 64, 0xA5, np.uint8), np.full(most_fine + 64, 0xA5, np.uint8)
    n = codec.encode(as_bytes(weights), rows, cols, coarse, fine)
    assert n % 64 == 0
    assert n <= most_fine
    assert (coarse[n_coarse:] == 0xA5).all()
    assert (fine[most_fine:] == 0xA5).all()
    return coarse[:n_coarse].copy(), fine[:n].copy()


def as_bytes(weights: U16) -> U8:
    return np.ascontiguousarray(weights, "<u2").reshape(-1).view(np.uint8)


def one_chunk(coarse: U8, fine: U8, rows: int, cols: int) -> codec.PackedRows:
    return codec.PackedRows(rows, cols, rows, coarse, fine, np.array([0, len(fine)], np.int64))


def pack(weights: U16, rows_per_chunk: int | None = None) -> codec.PackedRows:
    """A matrix in chunks; the last one without the padding of its coarse bytes."""
    rows, cols = weights.shape
    step = rows_per_chunk or rows
    chunks = [encode(weights[begin : begin + step]) for begin in range(0, rows, step)]
    last = rows - (len(chunks) - 1) * step
    bare = -(-last // 8) * 8 + last * -(-cols // 64) * 24
    coarse = np.concatenate([*(coarse for coarse, _ in chunks[:-1]), chunks[-1][0][:bare]])
    offsets = np.cumsum([0, *(len(fine) for _, fine in chunks)]).astype(np.int64)
    return codec.PackedRows(rows, cols, step, coarse, np.concatenate([fine for _, fine in chunks]), offsets)


def decode(packed: codec.PackedRows, begin: int = 0, end: int | None = None) -> U16:
    end = packed.rows if end is None else end
    out = np.full(2 * (end - begin) * packed.cols, 0xA5, np.uint8)
    codec.decode(packed, begin, end, out)
    return out.view(np.uint16).reshape(end - begin, packed.cols)
