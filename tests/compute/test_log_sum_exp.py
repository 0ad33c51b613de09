from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compute.log_sum_exp import MOST, LogSumExp, log_sum_exp


def exact(x: np.ndarray) -> float:
    most = float(x.max())
    return most + math.log(math.fsum(math.exp(float(value) - most) for value in x))


@given(st.integers(1, 3000), st.floats(0, 400), st.floats(-600, 600), st.integers(0, 2**32 - 1))
def test_it_is_what_it_says(n: int, spread: float, at: float, seed: int) -> None:
    x = (np.random.default_rng(seed).normal(size=n) * spread + at).astype(np.float32)
    assert log_sum_exp(x) == pytest.approx(exact(x), rel=1e-15, abs=1e-13)


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 700), min_size=1, max_size=6),
    st.floats(0, 80),
    st.integers(0, 2**32 - 1),
)
def test_its_bits_do_not_depend_on_the_parts_that_the_numbers_come_in(
    rows: int, widths: list[int], spread: float, seed: int
) -> None:
    x = (np.random.default_rng(seed).normal(size=(rows, sum(widths))) * spread).astype(np.float32)
    sums, first = LogSumExp(rows), 0
    for width in widths:
        sums.take(first, x[:, first : first + width])
        first += width
    np.testing.assert_array_equal(sums.values(), [log_sum_exp(row) for row in x])


def test_golden_bits() -> None:
    """The same on every CPU: a change of these is a change of what the project promises."""
    x = ((np.arange(5000) * 7919 % 4093) / 128 - 16).astype(np.float32)
    assert log_sum_exp(x).hex() == "0x1.50aec5716348cp+4"


def test_rows_by_groups() -> None:
    x = np.random.default_rng(1).normal(size=(5, 100)).astype(np.float32)
    sums = LogSumExp(5)
    sums.take(0, x[:2], slice(0, 2))
    sums.take(0, x[2:], slice(2, 5))
    np.testing.assert_array_equal(sums.values(), [log_sum_exp(row) for row in x])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([3.0, -np.inf], 3.0),
        ([-3e38, -1e30], -MOST + math.log(2)),
        ([3e38, 0.0], MOST),
        ([100000.0, 99999.0], 100000 + math.log1p(math.exp(-1))),
        ([-1000.0], -1000.0),
    ],
)
def test_far_from_zero(numbers: list[float], expected: float) -> None:
    assert log_sum_exp(np.array(numbers, np.float32)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.filterwarnings("error")
def test_nothing_at_all() -> None:
    assert LogSumExp(2).values().tolist() == [-math.inf] * 2
