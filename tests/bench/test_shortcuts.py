from __future__ import annotations

import numpy as np
import pytest
from shortcuts import (
    F32,
    changed,
    coarse,
    cosines,
    effects,
    idle,
    largest_cosines,
    largest_weights,
    low_rank,
    predictions,
    rounded,
    ruled_out,
    sequences,
)

from helpers.cases import DEMO
from penstock import LLM


@pytest.fixture
def w() -> F32:
    return np.random.default_rng(0).standard_normal((96, 64), dtype=np.float32)


class TestShortcuts:
    def test_rounding(self, w: F32) -> None:
        for bits, group in ((8, None), (4, 32)):
            steps = np.abs(w.reshape(96, -1, group or 64)).max(2) / (2 ** (bits - 1) - 1)
            error = np.abs(rounded(bits, group)(w) - w).reshape(96, -1, group or 64).max(2)
            assert (error <= steps / 2 * (1 + 1e-5)).all()

    def test_rounding_zeros(self) -> None:
        assert not rounded(4, 32)(np.zeros((4, 64), np.float32)).any()

    def test_low_rank(self, w: F32) -> None:
        assert np.linalg.matrix_rank(low_rank(0.5)(w)) == 0.5 * w.size // sum(w.shape)
        thin = w[:, :2] @ w[:2]
        assert np.allclose(low_rank(0.5)(thin), thin, atol=1e-4)

    def test_cosines_are_orthonormal(self) -> None:
        assert np.allclose(cosines(40) @ cosines(40).T, np.eye(40), atol=1e-5)

    def test_largest_cosines(self, w: F32) -> None:
        assert np.allclose(largest_cosines(1)(w), w, atol=1e-4)
        smooth = np.outer(cosines(96)[3], cosines(64)[5])
        assert np.allclose(largest_cosines(0.01)(smooth), smooth, atol=1e-5)

    def test_largest_weights(self, w: F32) -> None:
        left = largest_weights(0.25)(w)
        assert (left != 0).mean() == pytest.approx(0.25, abs=0.01)
        assert np.abs(w[left == 0]).max() <= np.abs(left[left != 0]).min()

    def test_coarse_is_nearer_than_signs(self, w: F32) -> None:
        said = coarse(w)
        assert np.array_equal(np.sign(said), np.sign(w))
        assert ((w - said) ** 2).mean() < 0.15 < ((w - np.sign(w) * np.abs(w).mean()) ** 2).mean()
        assert max(len(np.unique(np.abs(row))) for row in said) <= 4


class TestModel:
    def test_weights_as_they_are_change_nothing(self) -> None:
        with LLM.open(str(DEMO)) as llm, changed(DEMO, lambda w: w) as same:
            runs = [[5, 6, 7, 8] * 4]
            (best, nats), (their_best, their_nats) = predictions(llm, runs), predictions(same, runs)
        assert np.array_equal(best, their_best)
        assert nats == their_nats

    def test_sequences_are_spread_over_the_text(self) -> None:
        with LLM.open(str(DEMO)) as llm:
            text = "".join(f"def f{number}(x):\n    return x + {number}\n" for number in range(500))
            runs = sequences(llm, text, 1024)
            assert [len(run) for run in runs] == [256] * 4
            assert len(sequences(llm, "x", 1024)) == 1

    @pytest.mark.thorough
    def test_effects(self) -> None:
        with LLM.open(str(DEMO)) as llm:
            found = effects(DEMO, llm, [list(range(100, 140))])
        assert all(0 <= one.same_token <= 1 for one in found)
        assert found[0].same_token > found[2].same_token  # 8 bits, low rank

    def test_idle(self) -> None:
        with LLM.open(str(DEMO)) as llm:
            shares = idle(DEMO, llm, [list(range(100, 140))])
        assert shares.zeros_in_mlp < 0.01
        assert shares.rows_by_norm <= shares.rows_by_coarse < 1


def test_rows_that_a_bound_rules_out() -> None:
    w = np.array([[8, 0], [0.5, 0.5], [-8, 0]], np.float32)
    by_norm, by_coarse = ruled_out(np.array([[1, 0]], np.float32), w)
    assert by_norm == pytest.approx(1 / 3)  # the short row; the third is as long as the best
    assert by_coarse == pytest.approx(2 / 3)
