from __future__ import annotations

from itertools import pairwise

import pytest

from helpers.guessing import Scripted, root
from penstock.speculate.simulated import SimulatedDrafter
from penstock.speculate.tree import Tree

VOCAB, CHANCES = 50, (0.6, 0.2, 0.1)
TRUTH = [(7 * i) % VOCAB for i in range(2000)]


def simulated(scripted: Scripted | None = None, seed: int = 0) -> SimulatedDrafter:
    real = scripted or Scripted(lambda tree, node: [(1, 1.0)], name="coarse", free=False)
    return SimulatedDrafter(real, TRUTH, [CHANCES], VOCAB, seed)


def ranks(seed: int) -> list[int]:
    """At each position, which guess is right; 3 where none is."""
    drafter, found = simulated(seed=seed), []
    for position in range(1, len(TRUTH)):
        [guesses] = drafter.expand([(root(TRUTH[:position]), 0)])
        tokens = [guess.token for guess in guesses]
        assert [guess.score for guess in guesses] == list(CHANCES)
        assert len(set(tokens)) == 3
        assert all(0 <= token < VOCAB for token in tokens)
        found.append(tokens.index(TRUTH[position]) if TRUTH[position] in tokens else 3)
    return found


def test_guesses_are_right_as_often_as_was_said() -> None:
    found = ranks(seed=0)
    shares = [found.count(rank) / len(found) for rank in range(4)]
    assert shares == pytest.approx([0.6, 0.2, 0.1, 0.1], abs=0.05)
    # Of one position nothing follows for the next.
    after_right = [later for earlier, later in pairwise(found) if earlier == 0]
    assert after_right.count(0) / len(after_right) == pytest.approx(0.6, abs=0.06)


def test_the_seed_and_the_position_decide() -> None:
    assert ranks(seed=1) == ranks(seed=1) != ranks(seed=2)
    tree = on_path(5, 4)
    deep = simulated(seed=1).expand([(tree, len(tree) - 1)])
    assert deep == simulated(seed=1).expand([(root(TRUTH[:9]), 0)]), "as if it had been a root"


def on_path(begin: int, depth: int) -> Tree:
    tree = root(TRUTH[:begin])
    for node in range(depth):
        tree.add(node, TRUTH[begin + node], 0.5)
    return tree


def test_off_the_path_nothing_is_right() -> None:
    tree = root(TRUTH[:5])
    stray = tree.add(0, (TRUTH[5] + 1) % VOCAB, 0.5)
    for seed in range(50):
        [guesses] = simulated(seed=seed).expand([(tree, stray)])
        assert TRUTH[6] not in [guess.token for guess in guesses]


def test_chances_by_depth() -> None:
    """The last ones hold for all that is deeper."""
    real = Scripted(lambda tree, node: [(1, 1.0)], name="coarse", free=False)
    drafter = SimulatedDrafter(real, TRUTH, [[0.25, 0.5], [1.0]], VOCAB, 0)
    first = []
    for begin in range(1, 1000):
        tree = on_path(begin, 3)
        at_once, *later = drafter.expand([(tree, node) for node in range(4)])
        assert [[guess.token for guess in guesses] for guesses in later] == [[TRUTH[begin + i]] for i in (1, 2, 3)]
        first.append(at_once[0].token == TRUTH[begin])
    assert sum(first) / len(first) == pytest.approx(0.25, abs=0.05)


def test_after_the_end_of_what_is_known() -> None:
    assert len(simulated().expand([(root(TRUTH), 0)])[0]) == 3


def test_the_real_drafter_is_asked() -> None:
    scripted = Scripted(lambda tree, node: [(1, 1.0)] if node else [], name="draft", free=False)
    drafter, tree = simulated(scripted), on_path(5, 1)
    guesses = drafter.expand([(tree, 0), (tree, 1)])
    assert scripted.batches == [[(tree, 0), (tree, 1)]]
    assert [len(some) for some in guesses] == [0, 3], "it rests where the real one does"
    assert (drafter.name, drafter.free) == ("draft", False)
