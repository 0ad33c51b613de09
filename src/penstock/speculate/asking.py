"""Drafters that ask another one and pass on less, or something else: for measuring what guesses are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.models.logits import Likeliest
    from penstock.speculate.drafter import Drafter, Guess
    from penstock.speculate.tree import Tree


class Asking:
    """Says what another drafter says, and counts how often it was asked, and about how many nodes."""

    def __init__(self, drafter: Drafter) -> None:
        self.name = drafter.name
        self.free = drafter.free
        self.steps = 0
        self.nodes = 0
        self._drafter = drafter

    def begin(self, trees: Sequence[Tree]) -> None:
        self._drafter.begin(trees)

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        self.steps += 1
        self.nodes += len(nodes)
        return self._drafter.expand(nodes)

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        self._drafter.learn(tree, walk, likeliest)

    def forget(self, key: object) -> None:
        self._drafter.forget(key)


class FirstOnly(Asking):
    """A drafter's first guesses: they make a chain."""

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        return [guesses[:1] for guesses in super().expand(nodes)]


class Overheard(Asking):
    """Keeps a drafter's guesses to itself, so that every pass brings one token and asks about the next."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__(drafter)
        self.guesses: dict[int, list[Guess]] = {}
        """By position, of one sequence."""

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        for (tree, node), guesses in zip(nodes, super().expand(nodes), strict=True):
            self.guesses[len(tree.context) + tree.depth(node)] = guesses
        return [[] for _ in nodes]
