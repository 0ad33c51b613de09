"""rms_norm, rope, silu_mul, widen and store_kv against the contract's own steps, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.numerics_oracles import F32, dot, exp32, f32, i32, instruction_set, same_bits
from penstock import _core

ISAS = _core.isas()
POOLS = {threads: _core.ThreadPool(threads, 1 << 16) for threads in (1, 3)}
seeds = st.integers(0, 2**32 - 1)
isas, threads = st.sampled_from(ISAS), st.sampled_from(sorted(POOLS))


def strided(values: F32, gap: int) -> F32:
    """The same values with `gap` floats of NaN between rows."""
    rows, cols = values.shape[0], values[0].size
    memory = np.full((rows, cols + gap), np.nan, np.float32)
    memory[:, :cols] = values.reshape(rows, cols)
    return np.lib.stride_tricks.as_strided(memory, values.shape, (memory.strides[0], *values.strides[1:]))


def normal(rng: np.random.Generator, *shape: int) -> F32:
    return f32(rng.standard_normal(shape) * np.exp(rng.normal(0, 2)))


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    f = np.float32
    inverse = f(1) / np.sqrt(dot(x, x) / f(x.shape[1]) + f(eps))
    return f32(weight * (x * inverse[:, None]))


@given(seeds, isas, threads, st.integers(1, 5), st.integers(1, 70), st.integers(0, 9), st.booleans())
def test_rms_norm(seed: int, isa: str, threads: int, rows: int, n: int, gap: int, in_place: bool) -> None:
    rng = np.random.default_rng(seed)
    x, weight = normal(rng, rows, n), normal(rng, n)
    expected = rms_norm(x, weight, 1e-5)
    source = strided(x, gap)
    out = source if in_place else strided(np.zeros_like(x), gap)
    with instruction_set(isa):
        _core.rms_norm(POOLS[threads], source, weight, 1e-5, out)
    assert same_bits(out, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_rms_norm_is_accurate(isa: str) -> None:
    """The sum of n squares in 16 lanes errs by n / 16 + 5 roundings at most; six more follow, halved by the root."""
    rng = np.random.default_rng(0)
    x, weight = normal(rng, 3, 4096), normal(rng, 4096)
    out = np.empty_like(x)
    with instruction_set(isa):
        _core.rms_norm(POOLS[3], x, weight, 1e-6, out)
    wide = x.astype(np.float64)
    exact = weight * wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-6)
    assert (np.abs(out - exact) <= ((4096 / 16 + 7) / 2 + 4) * 2**-24 * np.abs(exact)).all()


@given(
    seeds, isas, threads, st.integers(1, 4), st.integers(1, 70), st.integers(0, 9), st.sampled_from(["gate", "up", ""])
)
def test_silu_mul(seed: int, isa: str, threads: int, rows: int, n: int, gap: int, alias: str) -> None:
    rng = np.random.default_rng(seed)
    gate, up = strided(normal(rng, rows, n) * 10, gap), strided(normal(rng, rows, n), gap)
    with np.errstate(over="ignore"):
        expected = gate / (1 + exp32(-gate)) * up
    out = {"gate": gate, "up": up}.get(alias, strided(np.zeros((rows, n), np.float32), gap))
    with instruction_set(isa):
        _core.silu_mul(POOLS[threads], gate, up, out)
    assert same_bits(out, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_silu_mul_at_the_edges(isa: str) -> None:
    gate = f32([[0, -0.0, 100, -100, 1e30, -1e30, np.inf, np.nan]])
    out = np.empty_like(gate)
    with instruction_set(isa):
        _core.silu_mul(POOLS[1], gate, np.ones_like(gate), out)
    assert same_bits(out, f32([[0, -0.0, 100, -0.0, 1e30, -0.0, np.inf, np.nan]]))


@given(seeds, isas, threads, st.integers(1, 4), st.integers(1, 3), st.integers(1, 40), st.integers(0, 9))
def test_rope(seed: int, isa: str, threads: int, rows: int, heads: int, half: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, rows, heads, 2 * half)
    cos, sin = normal(rng, rows, half), normal(rng, rows, half)
    c, s = cos[:, None], sin[:, None]
    first, second = x[..., :half], x[..., half:]
    expected = np.concatenate([first * c - second * s, second * c + first * s], -1)
    rotated = strided(x, gap)
    with instruction_set(isa):
        _core.rope(POOLS[threads], rotated, cos, sin)
    assert same_bits(rotated, expected)


def widened(dtype: str) -> tuple[np.ndarray[Any, Any], F32]:
    """Bytes of every 16-bit pattern (many 32-bit ones) and the floats they stand for."""
    halves = np.arange(2**16, dtype=np.uint16)
    if dtype == "BF16":
        return halves.view(np.uint8), (halves.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return halves.view(np.uint8), halves.view(np.float16).astype(np.float32)
    words = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32)
    return words.view(np.uint8), words.view(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_widen_is_exact_at_any_address(isa: str, dtype: str) -> None:
    source, expected = widened(dtype)
    size = 4 if dtype == "F32" else 2
    for shift, n in [(0, len(expected)), (1, len(expected)), (3, 17), (1, 15), (0, 1), (0, 0)]:
        memory = np.empty(shift + n * size, np.uint8)
        memory[shift:] = source[: n * size]
        out = np.full(n + 1, 7, np.float32)
        with instruction_set(isa):
            _core.widen(POOLS[3], memory[shift:], dtype, out[:n])
        assert same_bits(out[:n], expected[:n])
        assert out[n] == 7


TIES_AND_EDGES = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF7F8000, 0x00008000, 0x00018000, 1]
TIES_AND_EDGES += [0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000, 0x7FFFFFFF, 0x7F7F7FFF]


def round_to_bf16(x: F32) -> np.ndarray[Any, Any]:
    """Bits of the nearest BF16, by comparing distances; ties to even. Not for NaN."""
    down = x.view(np.uint32) >> 16
    up = down + 1
    with np.errstate(invalid="ignore"):
        wide = [(bits << 16).view(np.float32).astype(np.float64) for bits in (down, up)]
    past_largest = np.where(wide[1] < 0, -(2.0**128), 2.0**128)
    wide[1] = np.where(np.isinf(wide[1]), past_largest, wide[1])
    with np.errstate(invalid="ignore"):
        below, above = np.abs(x - wide[0]), np.abs(wide[1] - x)
    take_up = (above < below) | ((above == below) & (down % 2 == 1))
    return np.where(np.isinf(x) | ~take_up, down, up).astype(np.uint16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_store_kv_rounds_to_nearest_even(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    bits = np.concatenate([TIES_AND_EDGES, rng.integers(0, 2**32, 2 * 3 * 5 * 18 - len(TIES_AND_EDGES))])
    k, v = bits.astype(np.uint32).view(np.float32).reshape(2, 5, 3, 18)
    stored, _ = store(isa, k, v, dtype)
    for got, x in zip(stored, (k, v), strict=True):
        if dtype == "f32":
            assert same_bits(got, x)
        else:
            nan = np.isnan(x)
            assert (got[~nan] == round_to_bf16(x[~nan])).all()
            assert np.isnan((got[nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_store_kv_writes_its_slots_only(isa: str, dtype: str) -> None:
    k, v = np.ones((2, 5, 3, 18), np.float32)
    _, memory = store(isa, k, v, dtype)
    item = 2 if dtype == "bf16" else 4
    assert (memory != 0xAB).sum() <= 2 * k.size * item
    assert (memory[:, :64] == 0xAB).all()


def store(isa: str, k: F32, v: F32, dtype: str) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """What slots 2, 40, 15, 16 and 63 of a cache of two blocks of 32 hold of k and v [5, heads, dim]; its memory."""
    slots = i32([2, 40, 15, 16, 63])
    item, heads, dim = (2 if dtype == "bf16" else 4), k.shape[1], k.shape[2]
    plane = heads * 32 * dim * item
    memory = np.full((2, 64 + 2 * plane), 0xAB, np.uint8)
    addresses = np.array([block.ctypes.data for block in memory], np.uint64)
    layer = _core.KvLayer(addresses, 32, 64, 64 + plane, heads, dim, dtype)
    with instruction_set(isa):
        _core.store_kv(POOLS[3], k, v, slots, layer)
    kind = np.uint16 if dtype == "bf16" else np.float32
    planes = memory[:, 64:].copy().view(kind).reshape(2, 2, heads, 32, dim)
    return [planes[slots // 32, which, :, slots % 32] for which in range(2)], memory


def call(name: str, *args: Any) -> Callable[[], None]:
    return lambda: getattr(_core, name)(POOLS[1], *args)


def zeros(*shape: int) -> F32:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (call("rms_norm", zeros(2, 8), zeros(7), 1e-5, zeros(2, 8)), "length of weight is 7, expected 8"),
        (call("rms_norm", zeros(2, 8), zeros(8), 1e-5, zeros(3, 8)), "x and out differ in shape"),
        (call("silu_mul", zeros(2, 8), zeros(2, 7), zeros(2, 8)), "up and out differ in shape"),
        (call("rope", zeros(2, 1, 7), zeros(2, 3), zeros(2, 3)), "the head dimension must be even"),
        (call("rope", zeros(2, 1, 8), zeros(2, 3), zeros(2, 3)), "columns of cos is 3, expected 4"),
        (call("widen", np.zeros(9, np.uint8), "BF16", zeros(4)), "bytes of src is 9, expected 8"),
        (call("widen", np.zeros(8, np.uint8), "I8", zeros(4)), "unknown weight dtype 'I8', expected BF16, F16 or F32"),
    ],
)
def test_wrong_shapes_are_named(wrong: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        wrong()
