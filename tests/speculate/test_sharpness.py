from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.speculate.sharpness import CHOICES, Sharpness


def test_the_start_is_what_is_typical() -> None:
    for typical in CHOICES.tolist():
        assert Sharpness(typical).value == typical


def test_chances_are_a_softmax() -> None:
    chances = Sharpness(2.0).chances(np.array([0.0, -1.0, -3.0]))
    weights = np.exp([0.0, -2.0, -6.0])
    assert chances == pytest.approx(weights / weights.sum())


@given(st.lists(st.floats(-1e6, 0), max_size=20), st.sampled_from(CHOICES.tolist()))
def test_chances_add_up(below: list[float], typical: float) -> None:
    chances = Sharpness(typical).chances(np.array([0.0, *sorted(below, reverse=True)]))
    assert chances.sum() == pytest.approx(1)
    assert (np.diff(chances) <= 0).all()


@pytest.mark.parametrize("true", [0.5, 1.5, 4.0, 8.0])
@pytest.mark.parametrize("typical", [1.5, 3.0])
def test_it_is_fitted_to_what_was_chosen(true: float, typical: float) -> None:
    rng, sharpness = np.random.default_rng(0), Sharpness(typical)
    for _ in range(1500):
        scores = -np.sort(rng.exponential(0.7, 16))
        scores -= scores[0]
        chances = np.exp(true * scores) / np.exp(true * scores).sum()
        sharpness.learn(scores, np.array([rng.choice(16, p=chances)]))
    index = CHOICES.tolist().index(true)
    assert sharpness.value in CHOICES[max(0, index - 1) : index + 2]


def test_it_follows_what_changes() -> None:
    sharpness, scores = Sharpness(1.5), np.array([0.0, -0.5, -1.0])
    for _ in range(1000):
        sharpness.learn(scores, np.array([0]))
    assert sharpness.value == CHOICES[-1]
    for _ in range(1000):
        sharpness.learn(scores, np.array([2]))
    assert sharpness.value == CHOICES[0]


def test_a_choice_that_was_not_on_the_list_says_nothing() -> None:
    sharpness = Sharpness(1.5)
    for _ in range(1000):
        sharpness.learn(np.array([0.0, -1.0]), np.array([], np.int64))
    assert sharpness.value == 1.5


def test_scores_out_of_reach() -> None:
    """Of tokens that could not have been drawn: nothing becomes a NaN."""
    sharpness = Sharpness(1.5)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(50):
            sharpness.learn(np.array([0.0, -1e300]), np.array([0]))
            sharpness.learn(np.array([0.0, -1e3]), np.array([0]))
        assert sharpness.chances(np.array([0.0, -1e300])).tolist() == [1, 0]
