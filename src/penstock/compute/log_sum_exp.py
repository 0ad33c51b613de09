"""log(sum(exp(x))) with the same bits on every CPU, however the numbers come by.

NumPy's exp, log and sum vary by CPU, so all is made of operations that IEEE 754 rounds exactly. exp(x) is
2^(n / 32) times a polynomial of what is left (table-driven, after P. Tang, ACM TOMS 15(2), 1989). Sums are in 16 lanes,
lane j taking numbers j, j + 16, ... in ascending order, then one fixed tree. Powers of two are kept apart, so nothing
overflows and no maximum has to be known beforehand: where the numbers are cut into parts makes no difference.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, F64, I64

LANES = 16
STEPS = 32
MOST = float(1 << 20)
"""Numbers farther from 0 count as this: up to it, multiples of LN2_HIGH are exact."""
BLOCK = 1 << 13
"""Numbers that are worked on at a time: they stay in the CPU's cache, and in memory that malloc has at hand."""
LEAST_POWER = -1000
"""2 to this and less, beside the greatest number, is taken for 0."""

_LN2 = Decimal(2).ln()
POWERS = np.array([float(Decimal(2) ** (Decimal(step) / STEPS)) for step in range(STEPS)])
LN2_HIGH = round(float(_LN2 / STEPS) * 2**31) / 2**31
"""ln(2) / STEPS in 26 bits, and what is missing."""
LN2_LOW = float(_LN2 / STEPS - Decimal(LN2_HIGH))
INVERSE = float(STEPS / _LN2)
TAYLOR = [1.0, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720]
LN2 = float(_LN2)
LOG_TERMS = 12
"""Of the series of log: the next one is below 2**-60."""


class LogSumExp:
    """Of the numbers of `rows` rows, as they come by."""

    def __init__(self, rows: int) -> None:
        self._lanes = np.zeros((rows, LANES))
        """The sums, divided by 2 to the power of the row's exponent."""
        self._exponents = np.full(rows, -(1 << 40), np.int64)

    def take(self, first: int, x: F32, rows: slice = slice(None)) -> None:
        """Take in numbers `first` and after of some rows, float32 [rows, m], which follow those that came before."""
        lanes, exponents = self._lanes[rows], self._exponents[rows]
        width = max(1, BLOCK // max(1, len(x)) // LANES) * LANES
        begin = -(first % LANES)  # so that every part begins with lane 0
        while begin < x.shape[1]:
            _add(lanes, exponents, x[:, max(0, begin) : begin + width], max(0, -begin))
            begin += width

    def values(self) -> F64:
        """float64 [rows]: of all that came by; -inf where nothing did."""
        sums = self._lanes
        while sums.shape[1] > 1:
            sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
        empty = sums[:, 0] == 0
        logs = _log(np.where(empty, 1.0, sums[:, 0])) + self._exponents * LN2
        logs[empty] = -np.inf
        return logs


def log_sum_exp(x: F32) -> float:
    """Of one row of numbers."""
    sums = LogSumExp(1)
    sums.take(0, x[None])
    return float(sums.values()[0])


def _add(lanes: F64, exponents: I64, x: F32, skipped: int) -> None:
    """Add exp(x) to the lanes [rows, LANES] of rows, in place; x begins at lane `skipped`."""
    values, powers = _exp(x)
    greatest = np.maximum(exponents, powers.max(axis=1))
    # Exact, but for what is too small to be seen.
    lanes *= np.ldexp(1.0, np.maximum(exponents - greatest, LEAST_POWER).astype(np.int32))[:, None]
    exponents[:] = greatest
    powers -= greatest[:, None]
    np.maximum(powers, LEAST_POWER, out=powers)
    powers <<= 52
    values.view(np.int64)[:] += powers
    groups = -(-(skipped + x.shape[1]) // LANES)
    if skipped or groups * LANES != x.shape[1]:
        padded = np.zeros((len(x), groups * LANES))
        padded[:, skipped : skipped + x.shape[1]] = values
        values = padded
    for group in range(groups):
        lanes += values[:, group * LANES : (group + 1) * LANES]


def _exp(x: F32) -> tuple[F64, I64]:
    """exp(x) as (values from 0.98 to 2.02, powers of two)."""
    rest = x.astype(np.float64)
    np.minimum(np.maximum(rest, -MOST, out=rest), MOST, out=rest)
    steps = np.rint(rest * INVERSE)
    rest -= steps * LN2_HIGH
    rest -= steps * LN2_LOW
    values = np.full_like(rest, TAYLOR[-1])
    for term in TAYLOR[-2::-1]:
        values *= rest
        values += term
    with np.errstate(invalid="ignore"):  # of what is no number comes anything
        whole = steps.astype(np.int64)
    values *= POWERS[whole & (STEPS - 1)]
    return values, whole >> 5


def _log(x: F64) -> F64:
    """Of positive finite numbers: 2 artanh((m - 1) / (m + 1)) and the power of two."""
    mantissas, powers = np.frexp(x)
    low = mantissas < 0.7071067811865476
    mantissas, powers = np.where(low, 2 * mantissas, mantissas), powers - low
    ratio = (mantissas - 1) / (mantissas + 1)
    square, series = ratio * ratio, np.zeros_like(ratio)
    for term in range(LOG_TERMS, -1, -1):
        series = series * square + 1 / (2 * term + 1)
    return np.asarray(2 * ratio * series + powers * LN2)
