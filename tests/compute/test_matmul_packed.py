"""The matrix product with packed weights: bit by bit that with plain ones, whatever the instruction set."""

from __future__ import annotations

import mmap
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.forbidden import forbid
from helpers.numerics_oracles import same_bits
from helpers.packing import as_bytes, gaussian, pack
from helpers.thorough import examples
from penstock import _core
from penstock.compute.codec import MalformedRow, PackedRows
from penstock.compute.kernels import Kernels

F32 = npt.NDArray[np.float32]
U16 = npt.NDArray[np.uint16]
LEAST_SCRATCH = 64 << 10


@cache
def kernels(isa: str, threads: int = 2, scratch: int = 4 << 20) -> Kernels:
    """`isa` tells the caches of different instruction sets apart; the active one is used."""
    return Kernels(threads, scratch)


def inputs(rows: int, weights: U16, seed: int = 0) -> tuple[F32, F32]:
    """x and the product by the plain kernel, whose own tests hold it to the contract."""
    n, k = weights.shape
    x = np.random.default_rng([rows, n, k, seed]).standard_normal((rows, k), np.float32)
    expected = np.full((rows, n), np.nan, np.float32)
    Kernels(2).matmul(x, as_bytes(weights), "BF16", expected)
    return x, expected


def multiply(isa: str, x: F32, packed: PackedRows, threads: int = 2, scratch: int = 4 << 20) -> F32:
    out = np.full((len(x), packed.rows), np.nan, np.float32)
    kernels(isa, threads, scratch).matmul_packed(x, packed, out)
    return out


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 1001, 2085, 4096])
def test_every_remainder_of_columns(isa: str, cols: int) -> None:
    weights = gaussian(11, cols)
    packed = pack(weights, 7)
    for rows in (1, 2, 3, 9):
        x, expected = inputs(rows, weights)
        assert same_bits(multiply(isa, x, packed), expected)


def test_every_remainder_of_rows_and_outputs(isa: str) -> None:
    weights = gaussian(13, 200)
    for n in range(1, 14):
        packed = pack(weights[:n], 5)
        for rows in range(1, 14):
            x, expected = inputs(rows, weights[:n])
            assert same_bits(multiply(isa, x, packed), expected)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130, 200])
def test_many_rows_and_several_runs_of_weights(isa: str, rows: int) -> None:
    weights = gaussian(150, 1100)
    x, expected = inputs(rows, weights)
    assert same_bits(multiply(isa, x, pack(weights, 64)), expected)


def test_raw_rows_among_others(isa: str) -> None:
    """Rows that packing would make longer, at every place of a tile and in tiles of their own."""
    weights = gaussian(40, 321)
    rng = np.random.default_rng(0)
    for row in (0, 5, 10, 15, 20, 21, 22, 23, 24, 39):
        weights[row] = rng.integers(0, 0x7F80, 321)
    packed = pack(weights, 16)
    for rows in (1, 2, 5, 70):
        x, expected = inputs(rows, weights)
        assert same_bits(multiply(isa, x, packed), expected)


def test_infinities_and_nans(isa: str) -> None:
    weights = gaussian(9, 500)
    weights[1, 7], weights[3, 499], weights[4, 64], weights[6, 100:105] = 0x7F80, 0xFF80, 0x7FC1, 0x0001
    x, expected = inputs(3, weights)
    x[1, 7] = 0
    Kernels(1).matmul(x, as_bytes(weights), "BF16", expected)
    assert np.isnan(expected).any()
    assert same_bits(multiply(isa, x, pack(weights)), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("cols", [500, 4096, 8192])
def test_threads_and_scratch_change_nothing(isa: str, threads: int, cols: int) -> None:
    weights = gaussian(21, cols)
    packed = pack(weights, 8)
    for rows in (1, 2, 70):
        x, expected = inputs(rows, weights)
        for scratch in (LEAST_SCRATCH, 150 << 10, 4 << 20):
            assert same_bits(multiply(isa, x, packed, threads, scratch), expected)


@pytest.mark.parametrize("rows", [1, 3, 65])
def test_the_longest_rows(isa: str, rows: int) -> None:
    weights = gaussian(5, 1 << 18)
    x, expected = inputs(rows, weights)
    assert same_bits(multiply(isa, x, pack(weights, 2)), expected)


def test_rows_too_long_for_the_scratch(isa: str) -> None:
    packed = pack(gaussian(1, 20000))
    message = "packed rows of 20000 weights need [0-9]+ bytes of scratch"
    with pytest.raises(ValueError, match=message):
        multiply(isa, np.zeros((1, 20000), np.float32), packed, scratch=LEAST_SCRATCH)


@settings(max_examples=examples(60))
@given(
    rows=st.integers(1, 100),
    n=st.integers(1, 60),
    k=st.integers(1, 400),
    step=st.integers(1, 60),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_instruction_sets_agree(rows: int, n: int, k: int, step: int, threads: int, seed: int) -> None:
    weights = gaussian(n, k, seed)
    packed = pack(weights, step)
    x, expected = inputs(rows, weights, seed)
    before = _core.isa()
    try:
        for name in _core.isas():
            _core.set_isa(name)
            out = np.full((rows, n), np.nan, np.float32)
            pool = _core.ThreadPool(threads, 1 << 20)
            assert _core.matmul_packed(pool, x, packed, out) is None
            assert same_bits(out, expected)
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("rows", [1, 40])
def test_bias_then_accumulation(isa: str, rows: int) -> None:
    weights = gaussian(9, 83)
    packed = pack(weights)
    x, product = inputs(rows, weights)
    rng = np.random.default_rng(5)
    bias, before = rng.standard_normal(9, np.float32), rng.standard_normal((rows, 9), np.float32)
    for given_bias in (bias, None):
        out = before.copy()
        kernels(isa).matmul_packed(x, packed, out, bias=given_bias, accumulate=True)
        assert same_bits(out, before + (product + bias if given_bias is not None else product))
    out = before.copy()
    kernels(isa).matmul_packed(x, packed, out, bias=bias)
    assert same_bits(out, product + bias)


def test_rows_at_any_distance(isa: str) -> None:
    weights = gaussian(9, 83)
    x, expected = inputs(40, weights)
    wide_x, wide_out = np.full((40, 100), np.nan, np.float32), np.full((40, 30), 5, np.float32)
    wide_x[:, 7:90] = x
    kernels(isa).matmul_packed(wide_x[:, 7:90], pack(weights), wide_out[:, 3:12])
    assert same_bits(wide_out[:, 3:12].copy(), expected)
    assert (wide_out[:, :3] == 5).all()
    assert (wide_out[:, 12:] == 5).all()


@pytest.mark.parametrize("cols", [64, 83, 700])
def test_weights_up_to_the_last_byte_of_a_page(isa: str, cols: int) -> None:
    """Whoever reads past the chunks dies here: their last bytes are those of pages before forbidden ones."""
    weights = gaussian(9, cols)
    packed = pack(weights)
    ends = []
    for source in (packed.coarse, packed.fine[: last_byte(packed)]):
        pages = -(-len(source) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
        forbid(memory.ctypes.data + pages, mmap.PAGESIZE)
        memory[pages - len(source) : pages] = source
        ends.append(memory[pages - len(source) : pages])
    moved = PackedRows(9, cols, 9, ends[0], ends[1], np.array([0, len(ends[1])], np.int64))
    for rows in (1, 3, 20):
        x, expected = inputs(rows, weights)
        assert same_bits(multiply(isa, x, moved), expected)


def last_byte(packed: PackedRows) -> int:
    """Where the only chunk of a matrix ends without its padding."""
    return int(packed.fine[: 4 * packed.rows + 4].view("<u4")[-1]) + 8


def test_a_malformed_row_is_named(isa: str) -> None:
    weights = gaussian(70, 200)
    good = pack(weights, 30)
    for rows in (1, 2, 30):
        x, expected = inputs(rows, weights)
        for bad in (0, 29, 30, 45, 69):
            fine = good.fine.copy()
            chunk, index = divmod(bad, 30)
            table = int(good.fine_offsets[chunk])
            begin = int.from_bytes(fine[table + 4 * index : table + 4 * index + 4].tobytes(), "little")
            levels = table + begin + 4 * 56
            fine[levels : levels + 12] ^= 0xFF
            out = np.full((rows, 70), np.nan, np.float32)
            broken = PackedRows(70, 200, 30, good.coarse, fine, good.fine_offsets)
            with pytest.raises(MalformedRow, match=f"row {bad} of packed weights breaks the format") as caught:
                kernels(isa).matmul_packed(x, broken, out)
            assert caught.value.row == bad
            others = np.arange(70) != bad
            assert same_bits(out[:, others], expected[:, others])
            assert (out[:, bad] == 0).all()


def test_the_first_of_many_malformed_rows_is_named(isa: str) -> None:
    good = pack(gaussian(64, 200), 64)
    fine = good.fine.copy()
    fine[4 * 40 : 4 * 64] = 0
    with pytest.raises(MalformedRow) as caught:
        multiply(isa, np.ones((1, 200), np.float32), PackedRows(64, 200, 64, good.coarse, fine, good.fine_offsets), 3)
    assert caught.value.row == 39


def test_shapes_that_do_not_match() -> None:
    packed = pack(gaussian(4, 64))
    with pytest.raises(ValueError, match="packed weights are 4 x 64, not 5 x 64"):
        Kernels(1).matmul_packed(np.zeros((1, 64), np.float32), packed, np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="packed weights are 4 x 64, not 4 x 63"):
        Kernels(1).matmul_packed(np.zeros((1, 63), np.float32), packed, np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="rows of out is 2, expected 1"):
        Kernels(1).matmul_packed(np.zeros((1, 64), np.float32), packed, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="length of bias is 3, expected 4"):
        Kernels(1).matmul_packed(
            np.zeros((1, 64), np.float32), packed, np.zeros((1, 4), np.float32), bias=np.zeros(3, np.float32)
        )
