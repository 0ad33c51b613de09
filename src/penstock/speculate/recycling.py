"""Guesses from the target's own earlier logits: what it thought likely the last time that it saw this token.

Token recycling (arXiv 2408.08696). Every row of a pass teaches, those of guesses that were wrong too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.speculate.drafter import MOST_GUESSES, Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.kernels import F32, F64, I64
    from penstock.models.logits import Likeliest
    from penstock.speculate.tree import Tree

ENTRY_BYTES = MOST_GUESSES * (4 + 2)
"""Of a token."""


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
        return [self._guesses(tree, node) for tree, node in nodes]

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        width = min(MOST_GUESSES, likeliest.tokens.shape[1])
        for token, tokens, shares in zip(tree.tokens[tree.tip :], likeliest.tokens, likeliest.shares, strict=True):
            self._tokens[token, :width] = tokens[:width]
            self._chances[token, :width] = shares[:width]

    def forget(self, key: object) -> None:
        """Nothing: what one sequence taught is of use to others."""

    def _guesses(self, tree: Tree, node: int) -> list[Guess]:
        token = tree.tokens[node]
        known = self._chances[token] > 0
        tokens, chances = self._tokens[token, known], self._chances[token, known]
        if len(tokens) and not tree.sampler.takes_likeliest:
            tokens, chances = _as_drawn(tree, node, tokens.astype(np.int64), chances.astype(np.float32))
        return [Guess(*pair) for pair in zip(tokens.tolist(), chances.tolist(), strict=True) if pair[1] > 0]


def _as_drawn(tree: Tree, node: int, tokens: I64, chances: F32) -> tuple[I64, F64]:
    """Ranked as the sampler would draw them after `node`; together they remain as likely as they were."""
    order = np.argsort(tokens)
    position = len(tree.context) + tree.depth(node)
    seen = () if tree.sampler.rule.plain else tree.context + tree.path(node)
    ranked, scores = tree.sampler.rank(tokens[order], np.log(chances[order]), position, seen, len(tokens))
    shares = np.exp(scores)
    return ranked, shares / shares.sum() * float(chances.sum())
