from __future__ import annotations

import numpy as np

from helpers.guessing import Scripted, root
from penstock.models.logits import Likeliest
from penstock.speculate.asking import Asking, FirstOnly, Overheard
from penstock.speculate.drafter import Guess
from penstock.speculate.tree import Tree


def say(tree: Tree, node: int) -> list[tuple[int, float]]:
    return [(10 + node, 0.5), (20 + node, 0.25)]


def test_another_is_asked_and_told() -> None:
    scripted = Scripted(say, name="coarse", free=False)
    asking, tree = Asking(scripted), root()
    child = tree.add(0, 10, 0.5)
    logits = Likeliest.of(np.zeros((2, 3), np.float32))
    asking.begin([tree])
    assert asking.expand([(tree, 0), (tree, child)]) == [
        [Guess(10, 0.5), Guess(20, 0.25)],
        [Guess(11, 0.5), Guess(21, 0.25)],
    ]
    asking.expand([(tree, 0)])
    asking.learn(tree, [0, child], logits)
    asking.forget(tree.key)
    assert (asking.name, asking.free, asking.steps, asking.nodes) == ("coarse", False, 2, 3)
    assert scripted.begun == [[tree]]
    assert scripted.learned == [(tree, [0, child], logits)]
    assert scripted.forgotten == [tree.key]


def test_first_guesses_alone() -> None:
    first, tree = FirstOnly(Scripted(lambda tree, node: say(tree, node) if node else [])), root()
    child = tree.add(0, 10, 0.5)
    assert first.expand([(tree, 0), (tree, child)]) == [[], [Guess(11, 0.5)]]
    assert (first.steps, first.nodes) == (1, 2)


def test_guesses_are_kept_by_position() -> None:
    overheard, tree = Overheard(Scripted(say)), root([7, 8, 9])
    assert overheard.expand([(tree, 0)]) == [[]]
    assert overheard.guesses == {3: [Guess(10, 0.5), Guess(20, 0.25)]}
