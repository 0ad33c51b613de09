from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.guessing import root
from penstock.speculate.calibration import DOUBTED, UNTRIED, Calibration
from penstock.speculate.tree import Claim, Tree

SCORES = [1e-300, 0.001, 0.3, 0.99999, 1.0]


def chain(*guesses: tuple[int, float], drafter: str = "d") -> Tree:
    """Each guess after the one before."""
    tree, node = root(), 0
    for token, score in guesses:
        node = tree.add(node, token, 0.5, (Claim(drafter, score),))
    return tree


class TestChances:
    @given(st.floats(1e-6, 1.0), st.integers(1, 40))
    def test_the_start_is_the_drafters_own_score(self, score: float, depth: int) -> None:
        calibration = Calibration()
        assert calibration.chance(Claim("d", score), depth) == pytest.approx(score)
        assert calibration.chance_of_any("d", depth) == pytest.approx(UNTRIED)

    def test_a_score_above_1_counts_as_1(self) -> None:
        assert Calibration().chance(Claim("d", 3.0), 1) == pytest.approx(1)

    def test_the_share_of_guesses_that_were_right(self) -> None:
        """Three of four at this score, whatever the score says."""
        calibration = Calibration()
        for i in range(400):
            calibration.learn(chain((5, 0.1)), [5 if i % 4 else 6])
        assert calibration.chance(Claim("d", 0.1), 1) == pytest.approx(0.75, abs=0.05)
        assert calibration.chance_of_any("d", 1) == pytest.approx(0.75, abs=0.05)

    def test_what_was_learned_at_one_depth_is_the_start_for_others(self) -> None:
        calibration = Calibration()
        for _ in range(300):
            calibration.learn(chain((5, 0.1)), [5])
        assert calibration.chance(Claim("d", 0.1), 1) > 0.95
        assert calibration.chance(Claim("d", 0.1), 9) > 0.95

    def test_depths_differ(self) -> None:
        calibration = Calibration()
        for _ in range(300):
            calibration.learn(chain((5, 0.5), (6, 0.5)), [5, 7])
        assert calibration.chance(Claim("d", 0.5), 1) > 0.9
        assert calibration.chance(Claim("d", 0.5), 2) < 0.1

    def test_scores_differ(self) -> None:
        calibration = Calibration()
        for _ in range(300):
            tree = root()
            for token, score in ((5, 0.6), (6, 0.2)):
                tree.add(0, token, score, (Claim("d", score),))
            calibration.learn(tree, [6])
        assert calibration.chance(Claim("d", 0.6), 1) < 0.1
        assert calibration.chance(Claim("d", 0.2), 1) > 0.9
        assert calibration.chance_of_any("d", 1) > 0.9

    def test_drafters_differ(self) -> None:
        calibration = Calibration()
        for _ in range(300):
            tree = root()
            tree.add(0, 5, 0.5, (Claim("good", 0.5), Claim("both", 0.5)))
            tree.add(0, 6, 0.5, (Claim("bad", 0.5), Claim("both", 0.5)))
            calibration.learn(tree, [5])
        assert calibration.chance(Claim("good", 0.5), 1) > 0.9
        assert calibration.chance(Claim("bad", 0.5), 1) < 0.1
        assert calibration.chance(Claim("both", 0.5), 1) == pytest.approx(0.5, abs=0.05)
        assert calibration.chance_of_any("both", 1) > 0.9
        assert calibration.chance_of_any("bad", 1) < 0.1

    def test_old_experience_fades(self) -> None:
        calibration = Calibration()
        for token in (5, 6):
            for _ in range(1000):
                calibration.learn(chain((5, 0.5)), [token])
        assert calibration.chance(Claim("d", 0.5), 1) < 0.05

    @pytest.mark.parametrize("score", [0.0, 1e-300, 1.0])
    def test_scores_at_the_ends(self, score: float) -> None:
        calibration = Calibration()
        for _ in range(50):
            calibration.learn(chain((5, score)), [5])
        assert 0.5 < calibration.chance(Claim("d", score), 1) <= 1

    def test_doubted_guesses_are_learned_of_by_themselves(self) -> None:
        calibration = Calibration()
        assert calibration.chance(Claim("d", 0.5, "other"), 1) == pytest.approx(0.5 * DOUBTED)
        for _ in range(300):
            tree = root()
            tree.add(0, 5, 0.5, (Claim("d", 0.5), Claim("d", 0.5, "other")))
            calibration.learn(tree, [5])
            calibration.learn(chain((6, 0.5)), [5])
        assert calibration.chance(Claim("d", 0.5, "other"), 1) > 0.9
        assert calibration.chance(Claim("d", 0.5), 1) == pytest.approx(0.5, abs=0.05)
        assert calibration.chance(Claim("d", 0.5, "third"), 1) < 0.1


class TestLearning:
    def test_only_what_was_reached_counts(self) -> None:
        """A guess after a wrong one says nothing."""
        calibration = Calibration()
        for _ in range(300):
            calibration.learn(chain((5, 0.5), (6, 0.5), (7, 0.5)), [9, 6, 7])
        assert calibration.chance(Claim("d", 0.5), 1) < 0.05
        fresh = Calibration()
        fresh.learn(chain((5, 0.5)), [9])
        once = Calibration()
        once.learn(chain((5, 0.5), (6, 0.5)), [9, 6])
        assert once == fresh

    def test_a_walk_past_the_last_guess(self) -> None:
        calibration = Calibration()
        calibration.learn(chain((5, 0.5)), [5, 6])
        fresh = Calibration()
        fresh.learn(chain((5, 0.5)), [5])
        assert calibration == fresh

    @pytest.mark.parametrize("drawn", [[], [5]])
    def test_nothing_to_learn(self, drawn: list[int]) -> None:
        calibration = Calibration()
        calibration.learn(root(), drawn)
        assert calibration == Calibration()

    @given(
        st.lists(st.tuples(st.sampled_from([1e-300, 0.001, 0.3, 0.99999, 1.0]), st.booleans()), max_size=60),
        st.floats(1e-6, 1.0),
    )
    def test_chances_are_chances(self, history: list[tuple[float, bool]], score: float) -> None:
        calibration = Calibration()
        for past, right in history:
            calibration.learn(chain((5, past)), [5 if right else 6])
        for depth in (1, 2, 3, 9):  # by not even a rounding error above 1: no guess is likelier than its parent
            assert 0 < calibration.chance(Claim("d", score), depth) <= 1
            assert 0 < calibration.chance(Claim("d", score, "another"), depth) <= 1
            assert 0 <= calibration.chance_of_any("d", depth) <= 1
