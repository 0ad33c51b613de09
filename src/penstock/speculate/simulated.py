"""Guesses that are right as often as one says: what a drafter costs is real, what it knows is not.

For measuring how fast a shape would run with weights that nobody has at hand: random ones make no text that a drafter
could guess. The tokens to come are known from an earlier run, and are among the guesses with given chances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.speculate.asking import Asking
from penstock.speculate.drafter import Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.speculate.drafter import Drafter
    from penstock.speculate.tree import Tree


class SimulatedDrafter(Asking):
    """Asks a real drafter about every node, for what that takes, and says something else.

    After a node on the path that the sequence is going to take, the token to come is guess i with the chance
    `chances[depth][i]`, independently at each position, and none of them with what is left to 1; after others all are
    wrong. The depth is that of the node, 0 for the root; of deeper ones than there are chances for, the last hold.
    """

    def __init__(
        self, drafter: Drafter, truth: Sequence[int], chances: Sequence[Sequence[float]], vocab_size: int, seed: int
    ) -> None:
        """`truth`: the sequence from its first token on; `seed`: with it and the position, the same guesses again."""
        super().__init__(drafter)
        self._truth = list(truth)
        self._chances = [list(each) for each in chances]
        self._vocab_size = vocab_size
        self._seed = seed

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        """Nothing where the real drafter says nothing."""
        return [
            self._guesses(*spot) if guesses else [] for spot, guesses in zip(nodes, super().expand(nodes), strict=True)
        ]

    def _guesses(self, tree: Tree, node: int) -> list[Guess]:
        begin, path = len(tree.context), tree.path(node)
        position = begin + len(path)
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=position))
        chances = self._chances[min(len(path), len(self._chances) - 1)]
        draw, true = rng.random(), self._truth[position] if position < len(self._truth) else 0
        wrong = 1 + rng.choice(self._vocab_size - 1, len(chances), replace=False)
        tokens = ((true + wrong) % self._vocab_size).tolist()
        rank = int(np.searchsorted(np.cumsum(chances), draw, side="right"))
        if rank < len(tokens) and self._truth[begin:position] == path and position < len(self._truth):
            tokens[rank] = true
        return [Guess(token, chance) for token, chance in zip(tokens, chances, strict=True)]
