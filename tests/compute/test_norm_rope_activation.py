"""The small kernels against the contract's own steps, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.numerics_oracles import F32, capped, dot, f32, gated, i32, instruction_set, same_bits, tanh32
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


ACTIVATIONS = ["silu", "gelu_tanh"]


@given(
    seeds,
    isas,
    threads,
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(0, 9),
    st.sampled_from(["gate", "up", ""]),
    st.sampled_from(ACTIVATIONS),
)
def test_gated(seed: int, isa: str, threads: int, rows: int, n: int, gap: int, alias: str, activation: str) -> None:
    rng = np.random.default_rng(seed)
    gate, up = strided(normal(rng, rows, n) * 10, gap), strided(normal(rng, rows, n), gap)
    expected = gated(gate, up, activation)
    out = {"gate": gate, "up": up}.get(alias, strided(np.zeros((rows, n), np.float32), gap))
    with instruction_set(isa):
        _core.gated(POOLS[threads], gate, up, activation, out)
    assert same_bits(out, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_at_the_edges(isa: str, activation: str) -> None:
    gate = f32([[0, -0.0, 100, -100, 1e30, -1e30, np.inf, np.nan]])
    out = np.empty_like(gate)
    with instruction_set(isa):
        _core.gated(POOLS[1], gate, np.ones_like(gate), activation, out)
    assert same_bits(out, f32([[0, -0.0, 100, -0.0, 1e30, -0.0, np.inf, np.nan]]))


def test_gelu_is_accurate() -> None:
    """The formula's own value in float64. Roundings of z count times its size, as those of exp's argument do; where
    exp is beyond its range, the result is 0 in place of something as small."""
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)[None]
    out = np.empty_like(x)
    _core.gated(POOLS[3], x, np.ones_like(x), "gelu_tanh", out)
    wide = x.astype(np.float64)
    z = 2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    exact = wide / (1 + np.exp(-z))
    assert (np.abs(out - exact) <= (6 + 4 * np.abs(z)) * 2**-24 * np.abs(exact) + 4e-38).all()


def test_tanh_is_accurate() -> None:
    """Within 4 units in the last place, over all magnitudes; and where a cap's two sides meet."""
    x = f32(np.concatenate([np.linspace(-11, 11, 100_001), np.geomspace(1e-44, 700, 5001)]))[None]
    out = x.copy()
    _core.scale(POOLS[3], out, 1.0, 1.0, 1.0)
    exact = np.tanh(x.astype(np.float64))
    assert same_bits(out, tanh32(x))
    assert (np.abs(out - exact) <= 4 * 2**-24 * np.abs(exact) + 1e-45).all()


@given(
    seeds,
    isas,
    threads,
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(0, 9),
    st.sampled_from([1.0, 12.0, 59.75]),
    st.sampled_from([1.0, 8.0, 13.0]),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_scale(
    seed: int, isa: str, threads: int, rows: int, n: int, gap: int, times: float, divisor: float, cap: float
) -> None:
    x = strided(normal(np.random.default_rng(seed), rows, n) * 10, gap)
    expected = capped(f32(x * np.float32(times) / np.float32(divisor)), cap)
    with instruction_set(isa):
        _core.scale(POOLS[threads], x, times, divisor, cap)
    assert same_bits(x, expected)


@pytest.mark.parametrize("isa", ISAS)
def test_scale_at_the_edges(isa: str) -> None:
    x = f32([[0, -0.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-45]])
    with instruction_set(isa):
        _core.scale(POOLS[1], x, cap=30.0)
    assert same_bits(x, f32([[0, 0, 30, -30, 30, -30, np.nan, 0]]))


@given(seeds, isas, threads, st.integers(1, 5), st.integers(1, 70), st.integers(0, 9), st.booleans())
def test_add_rows(seed: int, isa: str, threads: int, rows: int, n: int, gap: int, spread: bool) -> None:
    rng = np.random.default_rng(seed)
    x, out, factors = strided(normal(rng, rows, n), gap), strided(normal(rng, rows, n), gap), normal(rng, rows)
    at = rng.integers(0, rows, rows).astype(np.int32) if spread else np.arange(rows, dtype=np.int32)
    expected = out.copy()
    for row, target in enumerate(at):
        expected[target] += x[row] * factors[row]
    with instruction_set(isa):
        _core.add_rows(POOLS[threads], x, factors, out, at if spread else None)
    assert same_bits(out, expected)


@given(
    seeds,
    isas,
    threads,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 9),
    st.just(0) | st.integers(0, 33),
)
def test_rope(seed: int, isa: str, threads: int, rows: int, heads: int, half: int, gap: int, rest: int) -> None:
    """The first 2 * half dimensions of a head; `rest` more stay as they are."""
    rng = np.random.default_rng(seed)
    x = normal(rng, rows, heads, 2 * half + rest)
    cos, sin = normal(rng, rows, half), normal(rng, rows, half)
    c, s = cos[:, None], sin[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    expected = np.concatenate([first * c - second * s, second * c + first * s, x[..., 2 * half :]], -1)
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
        (call("gated", zeros(2, 8), zeros(2, 7), "silu", zeros(2, 8)), "up and out differ in shape"),
        (
            call("gated", zeros(2, 8), zeros(2, 8), "relu", zeros(2, 8)),
            "unknown activation 'relu', expected silu or gelu_tanh",
        ),
        (call("scale", zeros(2, 8), 1.0, 1.0, -1.0), "cap must not be negative"),
        (call("add_rows", zeros(2, 8), zeros(2), zeros(2, 7)), "columns of x is 8, expected 7"),
        (call("add_rows", zeros(2, 8), zeros(3), zeros(2, 8)), "length of factors is 3, expected 2"),
        (call("add_rows", zeros(2, 8), zeros(2), zeros(3, 8)), "rows of x is 2, expected 3"),
        (call("add_rows", zeros(2, 8), zeros(2), zeros(3, 8), i32([0])), "length of at is 1, expected 2"),
        (call("add_rows", zeros(2, 8), zeros(2), zeros(3, 8), i32([0, 3])), "at: out has no row 3"),
        (call("add_rows", zeros(2, 8), zeros(2), zeros(3, 8), i32([-1, 0])), "at: out has no row -1"),
        (call("rope", zeros(2, 1, 8), zeros(2, 3), zeros(2, 4)), "cos and sin differ in shape"),
        (
            call("rope", zeros(2, 1, 7), zeros(2, 4), zeros(2, 4)),
            "columns of cos are more than half the head dimension",
        ),
        (call("widen", np.zeros(9, np.uint8), "BF16", zeros(4)), "bytes of src is 9, expected 8"),
        (call("widen", np.zeros(8, np.uint8), "I8", zeros(4)), "unknown weight dtype 'I8', expected BF16, F16 or F32"),
    ],
)
def test_wrong_shapes_are_named(wrong: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        wrong()
