"""Packed matrices of any writer, sound and spoilt, in memory without a byte to spare, held against all that reads them.

Every instruction set finds the same rows malformed and the same bits in all others, and reads no byte beside them: for
that, run it under AddressSanitizer (scripts/fuzz).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from helpers.free_encoder import Choices, encode_chunk
from penstock import _core
from penstock.compute.codec import MalformedRow, PackedRows, decode, row_extent, row_offsets_bytes, single_row
from penstock.compute.kernels import F32, Kernels
from penstock.compute.levels import CoarseChunks, CoarseRows

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
Rng = np.random.Generator


def tight(data: bytes, offset: int = 0) -> U8:
    """The bytes at the very end of memory of their own, `offset` bytes off its alignment."""
    memory = (ctypes.c_uint8 * (offset + len(data)))()
    array = np.frombuffer(memory, np.uint8)[offset:]
    array[:] = np.frombuffer(data, np.uint8)
    return array


def any_weights(rng: Rng, rows: int, cols: int) -> U16:
    """BF16 patterns: bell-shaped rows, noise, or few exponents, with noise strewn in."""
    scales = np.exp2(rng.integers(-130, 120, (rows, 1)).astype(np.float64))
    with np.errstate(over="ignore", under="ignore"):
        values = (rng.standard_normal((rows, cols)) * scales).astype(np.float32)
    weights = (values.view(np.uint32) >> 16).astype(np.uint16)
    noise = rng.integers(0, 1 << 16, (rows, cols)).astype(np.uint16)
    share = rng.choice([0.0, 0.0, 0.01, 0.3, 1.0], (rows, 1))
    return np.where(rng.random((rows, cols)) < share, noise, weights)


@dataclass(frozen=True)
class FreeMatrix:
    weights: U16
    """What the chunks were made from."""
    packed: PackedRows
    coarse: list[U8]
    """The coarse chunks, each in memory of its own."""
    spoilt: bool


def any_matrix(rng: Rng, most_weights: int = 20_000) -> FreeMatrix:
    """Of any shape that the kernels take, small mostly."""
    cols = int(rng.choice([rng.integers(1, 130), rng.integers(1, 1500), 64 * rng.integers(1, 20)]))
    if rng.random() < 0.02:
        cols = int(rng.choice([262_144, rng.integers(1500, 262_144)]))
    rows = int(rng.integers(1, max(2, min(24, most_weights // cols + 1))))
    step = int(rng.integers(1, rows + 1))
    weights = any_weights(rng, rows, cols)
    choices = Choices(rng)
    chunks = [encode_chunk(weights[begin : begin + step], choices) for begin in range(0, rows, step)]
    spoilt = bool(rng.random() < 0.6)
    if spoilt:
        chunks = [tuple(_spoil(rng, part, tier) for tier, part in enumerate(chunk)) for chunk in chunks]  # type: ignore[misc]
    last = rows - (len(chunks) - 1) * step
    bare = -(-last // 8) * 8 + last * -(-cols // 64) * 24
    coarse = [chunk[0] for chunk in chunks[:-1]] + [chunks[-1][0][:bare]]
    offsets = np.cumsum([0, *(len(fine) for _, fine in chunks)]).astype(np.int64)
    parts = (
        tight(b"".join(coarse), int(rng.integers(9))),
        tight(b"".join(fine for _, fine in chunks), int(rng.integers(9))),
    )
    return FreeMatrix(weights, PackedRows(rows, cols, step, *parts, offsets), [tight(part) for part in coarse], spoilt)


def _spoil(rng: Rng, part: bytes, tier: int) -> bytes:
    """Some other bytes; the fine tier may also be shorter or longer."""
    data = np.frombuffer(part, np.uint8).copy()
    kind = rng.integers(8)
    if kind == 0:
        data[:] = rng.integers(0, 256, len(data))
    elif kind == 1:
        data[:] = rng.choice([0, 255])
    elif kind == 2 and tier == 1:
        return part[: rng.integers(len(part) + 1)]
    elif kind == 3 and tier == 1:
        return part + bytes(rng.integers(1, 200))
    elif kind < 7:
        span = len(data) if rng.random() < 0.5 else min(len(data), 64)
        at = rng.integers(0, span, int(rng.integers(1, 8)))
        data[at] = data[at] ^ (1 << rng.integers(0, 8, len(at)))
    return data.tobytes()


@contextmanager
def each_isa() -> Iterator[list[str]]:
    before = _core.isa()
    try:
        yield _core.isas()
    finally:
        _core.set_isa(before)


def check_matrix(matrix: FreeMatrix, kernels: Kernels, rng: Rng) -> None:
    """Hold all kernels against each other, and against the weights where nothing is spoilt."""
    rows, cols = matrix.weights.shape
    x = rng.standard_normal((int(rng.choice([1, 2, 3, 9, 70])), cols)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if rng.random() < 0.5 else None
    found = []
    with each_isa() as names:
        for name in names:
            _core.set_isa(name)
            found.append((name, *_everything(matrix, kernels, x, bias)))
    for other in found[1:]:
        for one, two in zip(found[0][1:], other[1:], strict=True):
            _require_same(one, two, f"{other[0]} differs from {found[0][0]}")


def _everything(matrix: FreeMatrix, kernels: Kernels, x: F32, bias: F32 | None) -> list[object]:
    rows, cols = matrix.weights.shape
    plain, malformed = _decoded(matrix.packed)
    if not matrix.spoilt:
        assert not malformed
        assert np.array_equal(plain.view(np.uint16).reshape(rows, cols), matrix.weights)
    for row in range(rows):
        _check_single(matrix.packed, row, row in malformed, plain)
    out = np.ones((len(x), rows), np.float32)
    first = None
    try:
        kernels.matmul_packed(x, matrix.packed, out, bias=bias, accumulate=True)
    except MalformedRow as error:
        first = error.row
    assert first == min(malformed, default=None)
    expected = np.ones_like(out)
    kernels.matmul(x, plain, "BF16", expected, bias=bias, accumulate=True)
    _require_same(out, expected, "packed differs from plain")
    indexed, again = kernels.index(plain, rows, cols), np.ones_like(out)
    kernels.matmul_indexed(x, indexed, again, bias=bias, accumulate=True)
    _require_same(again, expected, "indexed differs from plain")
    return [plain, sorted(malformed), _clean(out), *_drafts(matrix, kernels, x, bias, plain)]


def _decoded(packed: PackedRows) -> tuple[U8, set[int]]:
    """All rows, each by itself, as zeros where it is malformed; and which are."""
    plain, malformed = tight(bytes(2 * packed.rows * packed.cols)), set()
    for row in range(packed.rows):
        own = plain[2 * row * packed.cols : 2 * (row + 1) * packed.cols]
        refused = _refused(packed, row, row + 1, own)
        assert refused in (None, row)
        if refused is not None:
            assert not own.any()
            malformed.add(row)
    together = tight(bytes(plain.nbytes))
    assert _refused(packed, 0, packed.rows, together) == min(malformed, default=None)
    assert np.array_equal(plain, together)
    return plain, malformed


def _refused(packed: PackedRows, begin: int, end: int, out: U8) -> int | None:
    """Decode rows; the one that is said to break the format, if any is."""
    try:
        decode(packed, begin, end, out)
    except MalformedRow as error:
        return error.row
    return None


def _check_single(packed: PackedRows, row: int, malformed: bool, plain: U8) -> None:
    """A row that is taken out of its chunk, as drafting reads those of a head."""
    chunk, index = divmod(row, packed.rows_per_chunk)
    count = min(packed.rows_per_chunk, packed.rows - chunk * packed.rows_per_chunk)
    fine = packed.fine[packed.fine_offsets[chunk] : packed.fine_offsets[chunk + 1]]
    if len(fine) < row_offsets_bytes(count):
        return
    offsets = np.frombuffer(fine[: row_offsets_bytes(count)].tobytes(), np.uint32)
    begin, end = row_extent(offsets, index)
    if not 0 < begin < end <= len(fine):
        return
    whole = -(-packed.rows_per_chunk // 8) * 8 + packed.rows_per_chunk * -(-packed.cols // 64) * 24
    coarse = packed.coarse[chunk * (-(-whole // 64) * 64) :]
    single = single_row(coarse, count, packed.cols, index, offsets, fine[begin:end])
    out = tight(bytes(2 * packed.cols))
    if _refused(single, 0, 1, out) is not None:
        assert malformed
    elif not malformed:
        assert np.array_equal(out, plain[2 * row * packed.cols : 2 * (row + 1) * packed.cols])


def _drafts(matrix: FreeMatrix, kernels: Kernels, x: F32, bias: F32 | None, plain: U8) -> list[object]:
    """By the coarse tier, and in 4 bits a weight."""
    rows, cols = matrix.weights.shape
    chunks = CoarseChunks(rows, cols, matrix.packed.rows_per_chunk, matrix.coarse)
    levels = kernels.coarse_levels(chunks)
    coarse = CoarseRows(chunks, *levels)
    nibbles = kernels.quantize_nibbles(plain, rows, cols)
    outs = [np.ones((len(x), rows), np.float32) for _ in range(2)]
    kernels.matmul_coarse(x, coarse, outs[0], bias=bias, accumulate=True)
    kernels.matmul_nibbles(x, nibbles, outs[1], bias=bias, accumulate=True)
    return [*levels, nibbles.data, nibbles.scales, *map(_clean, outs)]


def _clean(values: F32) -> F32:
    """NaNs are one class."""
    return np.where(np.isnan(values), np.float32(np.nan), values)


def _require_same(one: object, two: object, what: str) -> None:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        if one.dtype == np.float32:
            one, two = _clean(one), _clean(two)
        assert one.tobytes() == two.tobytes(), what
    else:
        assert one == two, what
