from __future__ import annotations

import numpy as np
import pytest

from penstock.compute.kernels import F32, Kernels
from penstock.tuning.fit import error_basis, quantized


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([*shape, seed]).standard_normal(shape, dtype=np.float32)


class TestErrorBasis:
    def test_errors_of_low_rank_are_spanned(self) -> None:
        errors = normal(40, 3) @ normal(3, 90)
        vectors = error_basis(errors, 8)
        assert vectors.shape == (90, 3)
        np.testing.assert_allclose(errors @ vectors @ vectors.T, errors, atol=1e-3)

    def test_no_other_directions_of_as_many_leave_less(self) -> None:
        errors, rank = normal(50, 30) * np.geomspace(1, 30, 30, dtype=np.float32), 4
        vectors = error_basis(errors, rank)
        left = np.square(errors - errors @ vectors @ vectors.T).sum()
        assert left == pytest.approx(np.square(np.linalg.svd(errors)[1][rank:]).sum(), rel=1e-4)

    def test_the_vectors_are_orthonormal(self) -> None:
        vectors = error_basis(normal(50, 30), 12)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), atol=1e-4)

    def test_without_errors_there_is_nothing(self) -> None:
        assert error_basis(np.zeros((20, 10), np.float32), 4).shape == (10, 0)

    def test_values_that_are_not_finite_count_as_none(self) -> None:
        errors = normal(20, 10)
        errors[3, 4], errors[5, 6] = np.inf, np.nan
        assert np.isfinite(error_basis(errors, 4)).all()


def test_a_correction_in_8_bits_is_near_the_whole_one() -> None:
    weights, x = normal(70, 300, seed=1), normal(9, 300, seed=2)
    vectors = error_basis(x @ weights.T, 9)
    correction = quantized(vectors, vectors.T @ weights)
    out = np.zeros((9, 70), np.float32)
    correction.add_to(Kernels(1), x, out)
    exact = x @ weights.T
    assert np.square(out - exact).sum() < 1e-3 * np.square(exact).sum()
