from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.numerics_oracles import same_bits
from helpers.thorough import examples
from penstock import _core
from penstock.compute.kernels import F32, I8, Kernels


def summed(factors: F32, levels: I8, out: F32) -> F32:
    """One row of levels after the other, every step rounded."""
    for k, row in enumerate(levels.astype(np.float32)):
        out = out + factors[:, k : k + 1] * row
    return out


def values(*shape: int, seed: int) -> F32:
    return np.random.default_rng([*shape, seed]).standard_normal(shape, dtype=np.float32)


def levels_of(*shape: int, seed: int) -> I8:
    return np.random.default_rng([*shape, seed]).integers(-128, 128, shape, np.int8)


def test_the_bits_of_the_definition(isa: str) -> None:
    @settings(max_examples=examples(60))
    @given(
        rows=st.integers(1, 12),
        rank=st.integers(1, 40),
        cols=st.integers(1, 400),
        threads=st.integers(1, 3),
        seed=st.integers(0, 1000),
    )
    def check(rows: int, rank: int, cols: int, threads: int, seed: int) -> None:
        factors, levels, out = (
            values(rows, rank, seed=seed),
            levels_of(rank, cols, seed=seed),
            values(rows, cols, seed=seed),
        )
        expected = summed(factors, levels, out)
        Kernels(threads, 64 << 10).add_levels(factors, levels, out)
        assert same_bits(out, expected)

    check()


def test_as_many_rows_of_levels_as_there_may_be(isa: str) -> None:
    factors, levels, out = values(3, 256, seed=1), levels_of(256, 130, seed=1), np.zeros((3, 130), np.float32)
    Kernels(1, 64 << 10).add_levels(factors, levels, out)
    assert same_bits(out, summed(factors, levels, np.zeros((3, 130), np.float32)))


def test_a_part_of_wider_rows(isa: str) -> None:
    wide = values(4, 300, seed=2)
    factors, levels, expected = values(4, 5, seed=2), levels_of(5, 100, seed=2), wide.copy()
    expected[:, 70:170] = summed(factors, levels, wide[:, 70:170])
    Kernels(2).add_levels(factors, levels, wide[:, 70:170])
    assert same_bits(wide, expected)


@pytest.mark.parametrize(
    ("factors", "levels", "out"),
    [((3, 4), (5, 6), (3, 6)), ((3, 4), (4, 7), (3, 6)), ((2, 4), (4, 6), (3, 6)), ((3, 257), (257, 6), (3, 6))],
)
def test_shapes_that_do_not_fit(factors: tuple[int, int], levels: tuple[int, int], out: tuple[int, int]) -> None:
    pool = _core.ThreadPool(1, 64 << 10)
    with pytest.raises(ValueError, match=r"rows|columns|levels"):
        _core.add_levels(pool, np.zeros(factors, np.float32), np.zeros(levels, np.int8), np.zeros(out, np.float32))
