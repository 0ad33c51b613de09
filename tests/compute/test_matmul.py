"""The matrix product against the numerics contract written out in NumPy, bit by bit."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.forbidden import forbid
from helpers.numerics_oracles import dot, fma32, instruction_set, same_bits, to_bf16
from helpers.thorough import examples
from penstock import _core

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
DTYPES = ["BF16", "F16", "F32"]
LEAST_SCRATCH = 64 << 10


@cache
def pool(threads: int = 2, scratch: int = 1 << 20) -> _core.ThreadPool:
    return _core.ThreadPool(threads, scratch)


def encode(w: F32, dtype: str) -> tuple[U8, F32]:
    """The bytes of w rounded to `dtype`, and the values that they stand for."""
    if dtype == "BF16":
        values = to_bf16(w)
        items: npt.NDArray[Any] = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        items = w.astype({"F16": np.float16, "F32": np.float32}[dtype])
        values = items.astype(np.float32)
    return np.ascontiguousarray(items).reshape(-1).view(np.uint8), values


def multiply(
    x: F32, w: U8, dtype: str, n: int, *, threads: int = 2, scratch: int = 1 << 20, bias: F32 | None = None
) -> F32:
    out = np.full((len(x), n), np.nan, np.float32)
    _core.matmul(pool(threads, scratch), x, w, dtype, out, bias=bias)
    return out


@cache
def case(rows: int, n: int, k: int, dtype: str) -> tuple[F32, U8, F32]:
    """x[rows, k], the bytes of w[n, k], and their product by the contract."""
    rng = np.random.default_rng([rows, n, k, DTYPES.index(dtype)])
    x = rng.standard_normal((rows, k), np.float32)
    w, values = encode(rng.standard_normal((n, k), np.float32), dtype)
    return x, w, dot(x[:, None], values[None])


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_rounds_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal(3) * 2.0 ** rng.integers(-20, 20, 3)).astype(np.float32)
    c = np.float32(c * 2.0 ** rng.integers(-30, 30))
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    got = fma32(a, b, c)
    error = abs(Fraction(float(got)) - exact)
    for neighbour in (np.nextafter(got, np.float32(np.inf)), np.nextafter(got, np.float32(-np.inf))):
        assert error <= abs(Fraction(float(neighbour)) - exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [*range(50), 1023, 1024, 1025, 1039])
def test_every_remainder_of_k(isa: str, dtype: str, k: int) -> None:
    x, w, expected = case(8, 5, k, dtype)
    assert same_bits(multiply(x, w, dtype, 5), expected)
    assert same_bits(multiply(x[:1], w, dtype, 5), expected[:1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_remainder_of_rows_and_outputs(isa: str, dtype: str) -> None:
    k = 37
    x, w, expected = case(19, 11, k, dtype)
    row_bytes = w.size // 11
    for rows in range(1, 20):
        for n in range(1, 12):
            assert same_bits(multiply(x[:rows], w[: n * row_bytes], dtype, n), expected[:rows, :n])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [23, 70])
def test_many_rows_and_several_blocks_of_k(isa: str, dtype: str, rows: int) -> None:
    x, w, expected = case(70, 43, 2085, dtype)
    assert same_bits(multiply(x[:rows], w, dtype, 43), expected[:rows])


@pytest.mark.parametrize("scratch", [LEAST_SCRATCH, 4 << 20])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_scratch_change_nothing(isa: str, threads: int, scratch: int) -> None:
    x, w, expected = case(70, 43, 2085, "BF16")
    assert same_bits(multiply(x, w, "BF16", 43, threads=threads, scratch=scratch), expected)


@settings(max_examples=examples(60), deadline=None)
@given(
    rows=st.integers(1, 140),
    n=st.integers(1, 150),
    k=st.integers(0, 300),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    first=st.integers(0, 139),
)
def test_instruction_sets_agree_whatever_rows_share_the_call(
    rows: int, n: int, k: int, dtype: str, threads: int, first: int
) -> None:
    rng = np.random.default_rng(rows * n + k)
    x = rng.standard_normal((rows, k), np.float32)
    w, _ = encode(rng.standard_normal((n, k), np.float32), dtype)
    with instruction_set("scalar"):
        expected = multiply(x, w, dtype, n)
    for name in _core.isas():
        with instruction_set(name):
            assert same_bits(multiply(x, w, dtype, n, threads=threads), expected)
            assert same_bits(multiply(x[first:], w, dtype, n), expected[first:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
def test_weights_at_any_address(isa: str, dtype: str, rows: int) -> None:
    x, w, expected = case(40, 9, 83, dtype)
    for offset in range(1, 66, 3):
        moved = np.zeros(w.size + 128, np.uint8)[offset : offset + w.size]
        moved[:] = w
        assert same_bits(multiply(x[:rows], moved, dtype, 9), expected[:rows])


def test_weights_up_to_the_last_byte_of_a_page(isa: str) -> None:
    """A partial load that reads too far dies here."""
    import mmap

    page = mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, 2 * page), np.uint8)
    forbid(memory.ctypes.data + page, page)
    for dtype in DTYPES:
        x, w, expected = case(8, 5, 19, dtype)
        memory[page - w.size : page] = w
        assert same_bits(multiply(x, memory[page - w.size : page], dtype, 5), expected)


def test_rows_at_any_distance(isa: str) -> None:
    x, w, expected = case(40, 9, 83, "BF16")
    wide_x = np.full((40, 100), np.nan, np.float32)
    wide_x[:, 7:90] = x
    wide_out = np.full((40, 30), 5, np.float32)
    _core.matmul(pool(), wide_x[:, 7:90], w, "BF16", wide_out[:, 3:12])
    assert same_bits(wide_out[:, 3:12].copy(), expected)
    assert (wide_out[:, :3] == 5).all()
    assert (wide_out[:, 12:] == 5).all()


@pytest.mark.parametrize("rows", [1, 40])
def test_bias_then_accumulation(isa: str, rows: int) -> None:
    x, w, product = case(40, 9, 83, "BF16")
    rng = np.random.default_rng(5)
    bias = rng.standard_normal(9, np.float32)
    before = rng.standard_normal((40, 9), np.float32)
    assert same_bits(multiply(x[:rows], w, "BF16", 9, bias=bias), product[:rows] + bias)
    out = before[:rows].copy()
    _core.matmul(pool(), x[:rows], w, "BF16", out, bias=bias, accumulate=True)
    assert same_bits(out, before[:rows] + (product[:rows] + bias))
    out = before[:rows].copy()
    _core.matmul(pool(), x[:rows], w, "BF16", out, accumulate=True)
    assert same_bits(out, before[:rows] + product[:rows])


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("k", [1, 16, 40])
def test_special_values(isa: str, rows: int, k: int) -> None:
    values = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-40, 1.2e-38, 3e38, -3e38, np.inf, -np.inf, np.nan]
    rng = np.random.default_rng(rows + k)
    x = rng.choice(np.array(values, np.float32), (rows, k))
    w, wide = encode(rng.choice(np.array(values, np.float32), (30, k)), "BF16")
    assert same_bits(multiply(x, w, "BF16", 30), dot(x[:, None], wide[None]))


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("k", [16, 17, 31, 32, 33])
def test_lanes_beyond_the_end_stay_untouched(isa: str, rows: int, k: int) -> None:
    """Every lane underflows to -0; adding a product of padding zeros would make it +0."""
    x = np.full((rows, k), 1e-30, np.float32)
    w, _ = encode(np.full((3, k), -1e-30, np.float32), "F32")
    assert np.signbit(multiply(x, w, "F32", 3)).all()


def test_denormal_products_are_kept(isa: str) -> None:
    x = np.full((2, 16), 2.0**-100, np.float32)
    w, _ = encode(np.full((3, 16), 2.0**-40, np.float32), "BF16")
    assert (multiply(x, w, "BF16", 3) == np.float32(16 * 2.0**-140)).all()


def test_no_terms_and_no_rows(isa: str) -> None:
    empty = np.zeros(0, np.uint8)
    for rows in (1, 40):
        assert same_bits(multiply(np.zeros((rows, 0), np.float32), empty, "F16", 3), np.zeros((rows, 3), np.float32))
    assert multiply(np.zeros((0, 4), np.float32), np.zeros(24, np.uint8), "BF16", 3).shape == (0, 3)
    assert multiply(np.zeros((2, 4), np.float32), empty, "BF16", 0).shape == (2, 0)


def test_widen_is_exact_for_every_pattern(isa: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(1 << 16, np.float32)
    _core.widen(pool(), patterns.view(np.uint8), "BF16", out)
    assert same_bits(out, (patterns.astype(np.uint32) << 16).view(np.float32))
    _core.widen(pool(), patterns.view(np.uint8), "F16", out)
    assert same_bits(out, patterns.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_widen_of_any_length_at_any_address(isa: str, dtype: str) -> None:
    w, values = encode(np.random.default_rng(0).standard_normal((1, 50), np.float32), dtype)
    item = w.size // 50
    for n in range(50):
        moved = np.zeros(n * item + 1, np.uint8)[1:]
        moved[:] = w[: n * item]
        out = np.full(n + 1, 5, np.float32)
        _core.widen(pool(), moved, dtype, out[:n])
        assert same_bits(out, np.append(values[0, :n], np.float32(5)))


def test_wrong_shapes_are_refused() -> None:
    x, out, w = np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32), np.zeros(24, np.uint8)
    p = pool()
    with pytest.raises(ValueError, match="bytes of w is 23, expected 24"):
        _core.matmul(p, x, w[:23], "BF16", out)
    with pytest.raises(ValueError, match="rows of out is 1, expected 2"):
        _core.matmul(p, x, w, "BF16", out[:1])
    with pytest.raises(ValueError, match="length of bias is 2, expected 3"):
        _core.matmul(p, x, w, "BF16", out, bias=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="unknown weight dtype 'I8', expected BF16, F16 or F32"):
        _core.matmul(p, x, w, "I8", out)
    with pytest.raises(ValueError, match="x: the elements of a row are not adjacent"):
        _core.matmul(p, np.zeros((2, 8), np.float32)[:, ::2], w, "BF16", out)
    with pytest.raises(ValueError, match="out: rows overlap or run backwards"):
        _core.matmul(p, x, w, "BF16", out[::-1])
    with pytest.raises(TypeError):
        _core.matmul(p, x.astype(np.float64), w, "BF16", out)
    with pytest.raises(ValueError, match="bytes of src is 24, expected 22"):
        _core.widen(p, w, "F16", np.zeros(11, np.float32))
