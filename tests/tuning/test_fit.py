from __future__ import annotations

import numpy as np
import pytest

from penstock.compute.corrections import Correction
from penstock.compute.kernels import F32, Kernels
from penstock.tuning.fit import best, error_basis, quantized


def normal(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng([*shape, seed]).standard_normal(shape, dtype=np.float32)


class TestErrorBasis:
    def test_errors_of_low_rank_are_spanned(self) -> None:
        errors = normal(40, 3) @ normal(3, 90)
        basis = error_basis(errors, normal(40, 90), 8)
        assert basis.vectors.shape == (90, 3)
        np.testing.assert_allclose(errors @ basis.vectors @ basis.vectors.T, errors, atol=1e-3)

    def test_no_other_directions_of_as_many_leave_less(self) -> None:
        errors, rank = normal(50, 30) * np.geomspace(1, 30, 30, dtype=np.float32), 4
        vectors = error_basis(errors, errors, rank).vectors
        left = np.square(errors - errors @ vectors @ vectors.T).sum()
        assert left == pytest.approx(np.square(np.linalg.svd(errors)[1][rank:]).sum(), rel=1e-4)

    def test_gains_are_shares_and_fall(self) -> None:
        errors = normal(50, 30)
        gains = error_basis(errors, 2 * errors, 30).gains
        assert (np.diff(gains) <= 0).all()
        assert gains.sum() == pytest.approx(0.25, rel=1e-3)

    def test_the_vectors_are_orthonormal(self) -> None:
        vectors = error_basis(normal(50, 30), normal(50, 30), 12).vectors
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), atol=1e-4)

    def test_without_errors_there_is_nothing(self) -> None:
        assert len(error_basis(np.zeros((20, 10), np.float32), normal(20, 10), 4).gains) == 0

    def test_values_that_are_not_finite_count_as_none(self) -> None:
        errors = normal(20, 10)
        errors[3, 4], errors[5, 6] = np.inf, np.nan
        assert np.isfinite(error_basis(errors, normal(20, 10), 4).vectors).all()


def test_a_correction_in_8_bits_is_near_the_whole_one() -> None:
    weights, x = normal(70, 300, seed=1), normal(9, 300, seed=2)
    basis = error_basis(x @ weights.T, x @ weights.T, 9)
    correction = quantized(basis, basis.vectors.T @ weights)
    out = np.zeros((9, 70), np.float32)
    correction.add_to(Kernels(1), x, out)
    exact = x @ weights.T
    assert np.square(out - exact).sum() < 1e-3 * np.square(exact).sum()


class TestBest:
    @pytest.fixture
    def corrections(self) -> dict[str, Correction]:
        def one(rows: int, cols: int, *gains: float) -> Correction:
            rank = len(gains)
            whole = np.zeros((rank, cols), np.int8), np.zeros((rank, rows), np.int8)
            return Correction(*whole, np.ones(rank, np.float32), np.array(gains, np.float32))

        return {"small": one(46, 46, 0.5, 0.1), "large": one(496, 496, 0.9, 0.8)}  # 100 and 1,000 bytes a component

    @pytest.mark.parametrize(
        ("nbytes", "ranks"),
        [
            (99, {}),
            (100, {"small": 1}),
            (200, {"small": 2}),
            (1200, {"small": 2, "large": 1}),
            (9999, {"small": 2, "large": 2}),
        ],
    )
    def test_takes_what_brings_most_for_its_bytes(
        self, corrections: dict[str, Correction], nbytes: int, ranks: dict[str, int]
    ) -> None:
        kept = best(corrections, nbytes)
        assert {name: correction.rank for name, correction in kept.items()} == ranks
        assert sum(correction.nbytes for correction in kept.values()) <= nbytes
