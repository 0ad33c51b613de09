"""Indexed rows: the bits of plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.numerics_oracles import same_bits
from helpers.thorough import examples
from penstock.compute.indexed import likely_bytes
from penstock.compute.kernels import F32, Kernels


def gaussian(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, cols), np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def products(kernels: Kernels, weights: np.ndarray, n: int, accumulate: bool = False) -> tuple[F32, F32]:
    """By plain and by indexed weights, with a bias."""
    rows, cols = weights.shape
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((n, cols), np.float32), rng.standard_normal(rows, np.float32)
    plain = weights.view(np.uint8).reshape(-1)
    out = np.full((n, rows), 0.5, np.float32)
    expected = out.copy()
    kernels.matmul(x, plain, "BF16", expected, bias=bias, accumulate=accumulate)
    kernels.matmul_indexed(x, kernels.index(plain, rows, cols), out, bias=bias, accumulate=accumulate)
    return out, expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 17, 25, 70])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 63), (9, 64), (7, 65), (67, 1001), (33, 4160)])
def test_the_bits_of_plain_weights(isa: str, rows: int, cols: int, n: int) -> None:
    out, expected = products(Kernels(2), gaussian(rows, cols), n, accumulate=n % 2 == 0)
    assert same_bits(out, expected)


def test_every_pattern(isa: str) -> None:
    """Each row has 32 neighbouring exponents of both signs, so that many groups are exceptions."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = np.where((patterns >> 7 & 0xFF) == 0xFF, patterns & 0x7FFF & ~np.uint16(0x7F80), patterns)
    for seed in range(3):
        weights = np.random.default_rng(seed).permutation(finite).reshape(16, 4096)
        for n in (1, 9):
            out, expected = products(Kernels(1), weights, n)
            assert same_bits(out, expected)


@settings(deadline=None, max_examples=examples(40))
@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 60), st.integers(0, 2**32))
def test_wild_exponents(rows: int, cols: int, wild: int, seed: int) -> None:
    weights = gaussian(rows, cols, seed)
    rng = np.random.default_rng(seed)
    places = rng.integers(0, rows * cols, wild)
    weights.reshape(-1)[places] = rng.integers(0, 0x7F80, wild)
    out, expected = products(Kernels(1), weights, 1)
    assert same_bits(out, expected)


def test_size() -> None:
    weights = gaussian(64, 4096)
    indexed = Kernels(1).index(weights.view(np.uint8).reshape(-1), 64, 4096)
    assert 12 * weights.size / 8 < indexed.data.nbytes <= likely_bytes(64, 4096) < 12.6 * weights.size / 8


@pytest.mark.parametrize("share", [0.001, 0.07, 0.6, 1.0])
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_zeros_are_no_exceptions(share: float, sign: int) -> None:
    """Trained models may be full of them, far below all other weights."""
    weights = gaussian(64, 4096)
    weights[np.random.default_rng(2).random(weights.shape) < share] = sign
    out, expected = products(Kernels(1), weights, 5)
    assert same_bits(out, expected)
    indexed = Kernels(1).index(weights.view(np.uint8).reshape(-1), 64, 4096)
    assert indexed.data.nbytes <= likely_bytes(64, 4096)


@settings(deadline=None, max_examples=examples(40))
@given(st.integers(0, 255), st.integers(1, 40), st.floats(0, 1), st.integers(1, 200), st.integers(0, 2**32))
def test_exponents_anywhere_beside_zeros(first: int, count: int, share: float, cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    exponents = np.minimum(first + rng.integers(0, count, (4, cols)), 254)
    weights = (exponents << 7 | rng.integers(0, 128, (4, cols)) | rng.integers(0, 2, (4, cols)) << 15).astype(np.uint16)
    weights[rng.random(weights.shape) < share] = 0
    kernels, plain = Kernels(1), weights.view(np.uint8).reshape(-1)
    out, again = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    x = np.zeros((1, cols), np.float32)
    for column in rng.integers(0, cols, 5):  # one weight of each row at a time, whatever a sum of them would be
        x[:] = 0
        x[0, column] = 1
        kernels.matmul(x, plain, "BF16", out)
        kernels.matmul_indexed(x, kernels.index(plain, 4, cols), again)
        assert same_bits(again, out)


def test_shapes_that_do_not_match() -> None:
    kernels = Kernels(1)
    indexed = kernels.index(gaussian(4, 64).view(np.uint8).reshape(-1), 4, 64)
    with pytest.raises(ValueError, match="indexed weights are 4 x 64, not 5 x 64"):
        kernels.matmul_indexed(np.zeros((1, 64), np.float32), indexed, np.zeros((1, 5), np.float32))
