"""Guesses from the target's own earlier logits: what it thought likely the last time that it saw this token.

Token recycling (arXiv 2408.08696). Every row of a pass teaches, those of guesses that were wrong too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.speculate.drafter import MOST_GUESSES, Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.kernels import F32, I64
    from penstock.speculate.tree import Tree

BLOCK = 256
"""Logits of which the maximum is taken first."""


class Recycling:
    """For each token its likeliest successors when last seen: 8 of them, 6.2 MB for 128,256 tokens.

    Memory that no token needed yet is not touched.
    """

    name = "recycling"
    free = True

    def __init__(self, vocab_size: int) -> None:
        self._tokens = np.zeros((vocab_size, MOST_GUESSES), np.int32)
        self._chances = np.zeros((vocab_size, MOST_GUESSES), np.float16)

    def begin(self, trees: Sequence[Tree]) -> None:
        """Nothing: every pass taught."""

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        return [self._guesses(tree.tokens[node]) for tree, node in nodes]

    def learn(self, tree: Tree, walk: Sequence[int], logits: F32) -> None:
        for token, row in zip(tree.tokens, logits, strict=True):
            best = largest(row, MOST_GUESSES)
            self._tokens[token, : len(best)] = best
            chances = np.exp(row[best] - row[best[0]])
            self._chances[token, : len(best)] = chances / np.exp(row - row[best[0]]).sum()

    def _guesses(self, token: int) -> list[Guess]:
        pairs = zip(self._tokens[token].tolist(), self._chances[token].tolist(), strict=True)
        return [Guess(token, chance) for token, chance in pairs if chance > 0]


def largest(row: F32, count: int) -> I64:
    """Indices of the `count` largest of a row float32 [n], the largest first; all where n is smaller."""
    whole = len(row) - len(row) % BLOCK
    candidates = np.arange(len(row))
    if whole > count * BLOCK:  # what is among the largest is in one of the blocks with the largest maxima
        maxima = row[:whole].reshape(-1, BLOCK).max(axis=1)
        blocks = np.argpartition(maxima, -count)[-count:]
        candidates = np.concatenate([(blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel(), candidates[whole:]])
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]
