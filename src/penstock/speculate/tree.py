"""A tree of guesses that follows one sequence.

Node 0 is the root: the token drawn last, whose keys and values are not in the cache yet. Every other node guesses the
token after its parent. A pass over all nodes tells the target's choice after each of them, so the sequence goes on
along the path that the target's own choices take through the tree (arXiv 2305.09781).

Where a grammar forced tokens after that one, they follow the root as a trunk, and guesses follow the trunk's end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from penstock.grammars.matcher import Matcher
    from penstock.models.kv_cache import KvCache
    from penstock.sampling import Sampler


TINY = 1e-300


class Claim(NamedTuple):
    """Who guessed a node, and what chance they gave it after its parent."""

    drafter: str
    score: float
    doubter: str = ""
    """A better drafter that was asked about the same token and does not guess so."""


class Tree:
    """Nodes are numbered from the root on, parents before children."""

    def __init__(
        self,
        key: object,
        context: list[int],
        sampler: Sampler,
        cache: KvCache,
        deepest: int,
        trunk: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        """`key`: the same for all trees of a sequence, and weakly referable; `context`: its tokens up to the root's,
        all but that in `cache`; `deepest`: how many further tokens may follow the root's, which guesses need not pass;
        `trunk`: those that do in any case; `matcher`: what the answer has to be, as far as it has come with them."""
        self.key = key
        self.context = context
        self.sampler = sampler
        self.cache = cache
        self.deepest = deepest
        self.tokens = [context[-1]]
        self.parents = [-1]
        self.chances = [1.0]
        """The chance that the walk comes to a node."""
        self.claims: list[tuple[Claim, ...]] = [()]
        self._depths = [0]
        self._children: list[dict[int, int]] = [{}]
        self.matcher = matcher
        for node, token in enumerate(trunk):
            self.add(node, token, 1.0)
        self.tip = len(self) - 1
        """The end of the trunk, which is the root where there is none."""

    @property
    def guesses(self) -> int:
        """Nodes behind the trunk."""
        return len(self) - 1 - self.tip

    @property
    def sampled(self) -> bool:
        """Whether the sequence's tokens are drawn with noise."""
        return self.sampler.rule.temperature > 0

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float, claims: tuple[Claim, ...] = ()) -> int:
        """A new node, of a token that `parent` has no child of."""
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chance)
        self.claims.append(claims)
        self._depths.append(self._depths[parent] + 1)
        self._children[parent][token] = node
        self._children.append({})
        return node

    def set_chance(self, node: int, chance: float) -> None:
        """Change a node's chance, and that of what follows it in proportion."""
        factor = chance / max(self.chances[node], TINY)
        self.chances[node] = chance
        below = [*self._children[node].values()]
        while below:
            child = below.pop()
            self.chances[child] = min(self.chances[child] * factor, self.chances[self.parents[child]])
            below += self._children[child].values()

    def depth(self, node: int) -> int:
        """0 for the root."""
        return self._depths[node]

    def child(self, node: int, token: int) -> int | None:
        """The node that guesses `token` after `node`."""
        return self._children[node].get(token)

    def children(self, node: int) -> Iterable[int]:
        return self._children[node].values()

    def lineage(self, node: int) -> list[int]:
        """The nodes from the root's child on down to `node`; empty for the root."""
        nodes = []
        while node > 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def path(self, node: int) -> list[int]:
        """The tokens of the lineage."""
        return [self.tokens[node] for node in self.lineage(node)]

    def grammar_after(self, node: int) -> AbstractContextManager[None]:
        """Let the matcher, if there is one, be behind `node` for as long as the context lasts."""
        return nullcontext() if self.matcher is None else self.matcher.after(self.said(node))

    def said(self, node: int) -> list[int]:
        """The tokens behind the trunk down to `node`."""
        return self.path(node)[self.tip :]

    def largest(self, count: int) -> Tree:
        """The trunk and the `count` other nodes with the highest chances, with their parents before them.

        No node's chance is above its parent's, so what is kept hangs together.
        """
        trunk = self.tip + 1
        ranked = sorted(range(trunk, len(self)), key=lambda node: (-self.chances[node], node))
        kept = Tree(self.key, self.context, self.sampler, self.cache, self.deepest, self.tokens[1:trunk], self.matcher)
        new = {node: node for node in range(trunk)}
        for node in sorted(ranked[:count]):
            parent = new[self.parents[node]]
            new[node] = kept.add(parent, self.tokens[node], self.chances[node], self.claims[node])
        return kept
