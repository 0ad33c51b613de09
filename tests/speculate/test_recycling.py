from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from penstock.compute.kernels import Kernels
from penstock.models.logits import Likeliest
from penstock.sampling import Sampler, SamplingRule
from penstock.speculate.drafter import MOST_GUESSES
from penstock.speculate.recycling import Recycling
from penstock.speculate.tree import Tree

KERNELS = Kernels(1)
VOCAB = 50


def tree(*tokens: int, rule: SamplingRule = SamplingRule(temperature=0)) -> Tree:  # noqa: B008
    """A root with children."""
    cache: Any = None
    result = Tree(object(), [1, 2, tokens[0]], Sampler(rule, 5, KERNELS), cache, deepest=99)
    for token in tokens[1:]:
        result.add(0, token, 0.5)
    return result


def logits(*likely: list[int]) -> npt.NDArray[np.float32]:
    """For each row the tokens that it finds likely, the likeliest first."""
    rows = np.full((len(likely), VOCAB), -5, np.float32)
    for row, tokens in zip(rows, likely, strict=True):
        row[tokens] = np.arange(len(tokens), 0, -1)
    return rows


def test_a_row_teaches_what_follows_its_token() -> None:
    drafter = Recycling(VOCAB)
    before = tree(7)
    rows = logits([30, 20, 10])
    drafter.learn(before, [0], Likeliest.of(rows))
    (guesses,) = drafter.expand([(before, 0)])
    assert [guess.token for guess in guesses[:3]] == [30, 20, 10]
    assert len(guesses) == MOST_GUESSES
    chances = np.exp(rows[0]) / np.exp(rows[0]).sum()
    assert [guess.score for guess in guesses] == pytest.approx([chances[g.token] for g in guesses], rel=1e-3)


def test_wrong_guesses_teach_too() -> None:
    drafter = Recycling(VOCAB)
    drafter.learn(tree(7, 8, 9), [0, 1], Likeliest.of(logits([8], [3], [4])))
    (guesses,) = drafter.expand([(tree(9), 0)])
    assert guesses[0].token == 4


def test_the_last_time_counts() -> None:
    drafter = Recycling(VOCAB)
    drafter.learn(tree(7), [0], Likeliest.of(logits([8])))
    drafter.learn(tree(7), [0], Likeliest.of(logits([9])))
    assert drafter.expand([(tree(7), 0)])[0][0].token == 9


def test_nodes_are_expanded_by_their_own_tokens() -> None:
    drafter = Recycling(VOCAB)
    known = tree(7, 8)
    drafter.begin([known])
    drafter.learn(known, [0], Likeliest.of(logits([8], [3])))
    assert [guesses[0].token for guesses in drafter.expand([(known, 1), (known, 0)])] == [3, 8]


def test_sampled_guesses_share_the_noise_of_the_draw() -> None:
    """The best guess after each of many positions, from the very logits of the draw, is the draw."""
    drafter = Recycling(VOCAB)
    rows = logits([30, 31, 32, 33, 34, 35, 36, 37])
    drafter.learn(tree(7), [0], Likeliest.of(rows))
    sampled = tree(7, rule=SamplingRule(temperature=1))
    nodes = [0]
    for _ in range(40):
        nodes.append(sampled.add(nodes[-1], 7, 0.5))
    drawn = [sampled.sampler(rows[0], len(sampled.context) + depth, ()) for depth in range(len(nodes))]
    all_guesses = drafter.expand([(sampled, node) for node in nodes])
    assert len(set(drawn)) > 2
    assert [guesses[0].token for guesses in all_guesses] == drawn
    (greedy,) = drafter.expand([(tree(7), 0)])
    for guesses in all_guesses:
        assert sum(guess.score for guess in guesses) == pytest.approx(sum(guess.score for guess in greedy), rel=1e-3)


def test_a_penalty_on_what_was_seen_counts() -> None:
    drafter = Recycling(VOCAB)
    drafter.learn(tree(7), [0], Likeliest.of(logits([1, 30])))
    penalised = tree(7, rule=SamplingRule(temperature=0, repetition_penalty=10))
    assert [drafter.expand([(t, 0)])[0][0].token for t in (tree(7), penalised)] == [1, 30]


def test_an_unknown_token_has_no_guesses() -> None:
    assert Recycling(VOCAB).expand([(tree(7), 0)]) == [[]]


def test_a_small_vocabulary_has_fewer_guesses() -> None:
    drafter = Recycling(3)
    drafter.learn(tree(2), [0], Likeliest.of(np.array([[0, 2, 1]], np.float32)))
    assert [guess.token for guess in drafter.expand([(tree(2), 0)])[0]] == [1, 2, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_teach_nothing(value: float) -> None:
    drafter = Recycling(VOCAB)
    drafter.learn(tree(7), [0], Likeliest.of(np.full((1, VOCAB), value, np.float32)))
    assert drafter.expand([(tree(7), 0)]) == [[]]
