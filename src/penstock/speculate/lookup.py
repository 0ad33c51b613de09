"""Guesses from the sequence's own text: what followed the last few tokens where they occurred before.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding), with the continuations of shorter and longer
matches blended as language models of n-grams are (Witten and Bell, 1991, doi:10.1109/18.87000).
"""

from __future__ import annotations

from array import array
from itertools import islice
from typing import TYPE_CHECKING

from penstock.speculate.drafter import Guess

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.models.logits import Likeliest
    from penstock.speculate.tree import Tree

ORDERS = {1: 2.0, 2: 1.5, 3: 1.0, 4: 0.75, 6: 0.5, 8: 0.25}
"""Lengths of matches, and how many occurrences the opinion of shorter matches counts for beside each."""
OCCURRENCES = 8
"""The latest of each length are looked at."""
MOST_GUESSES = 4


class Lookup:
    """Text that repeats itself, and quotes of the prompt, make long chains of guesses."""

    name = "lookup"
    free = True

    def __init__(self) -> None:
        self._texts: dict[object, Text] = {}

    def begin(self, trees: Sequence[Tree]) -> None:
        for tree in trees:
            self._texts.setdefault(tree.key, Text()).extend(tree.context)

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        return [self._texts[tree.key].guesses(tree.path(node)) for tree, node in nodes]

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        """Nothing: the text tells."""

    def forget(self, key: object) -> None:
        self._texts.pop(key, None)


class Text:
    """A sequence's tokens, and where each n-gram of them occurs."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._chains = [Chain(order, self._tokens) for order in ORDERS]

    def extend(self, context: Sequence[int]) -> None:
        """Take in what `context` has more than was there."""
        self._tokens.extend(context[len(self._tokens) :])
        for chain in self._chains:
            chain.extend()

    def guesses(self, path: Sequence[int]) -> list[Guess]:
        """What may follow the text and then `path`, best first."""
        longest = max(ORDERS)
        tail = self._tokens[-longest:]
        tail.extend(path)
        chances: dict[int, float] = {}
        for chain, weight in zip(self._chains, ORDERS.values(), strict=True):
            followers = chain.followers(tail, len(path))
            if not followers:
                break
            total = len(followers) + weight
            chances = {token: chance * weight / total for token, chance in chances.items()}
            for token in followers:
                chances[token] = chances.get(token, 0.0) + 1 / total
        best = sorted(chances.items(), key=lambda item: -item[1])[:MOST_GUESSES]
        return [Guess(token, chance) for token, chance in best]


class Chain:
    """The ends of all n-grams of one length, each linked to the one before it that hashes alike, as in LZ77 coders.

    8 to 12 bytes a token. An end is the index of the token that follows; 0 stands for none.
    """

    def __init__(self, order: int, tokens: array[int]) -> None:
        self._order = order
        self._tokens = tokens
        self._latest = array("i")
        """By hash."""
        self._before = array("i")
        """By end."""

    def extend(self) -> None:
        """Index the tokens that are new."""
        n = len(self._tokens)
        if n >= len(self._latest):
            self._latest = array("i", [0]) * (1 << n.bit_length())
            self._before = array("i", [0]) * self._order
        for end in range(len(self._before), n + 1):
            slot = self._slot(self._tokens[end - self._order : end])
            self._before.append(self._latest[slot])
            self._latest[slot] = end

    def followers(self, tail: array[int], new: int) -> list[int]:
        """Tokens that followed the last n-gram of `tail` where it occurred before, the latest first.

        `tail` is the end of the text, and `new` tokens that are to follow the text, which count as such.
        """
        return list(islice(self._followers(tail, new), OCCURRENCES))

    def _followers(self, tail: array[int], new: int) -> Iterator[int]:
        order, tokens, n = self._order, self._tokens, len(self._tokens)
        if len(tail) < order:
            return
        gram = tail[-order:]
        for end in range(len(tail) - 1, max(len(tail) - new, order) - 1, -1):
            if tail[end - order : end] == gram:
                yield tail[end]
        end = self._latest[self._slot(gram)]
        while end:
            if end < n and tokens[end - order : end] == gram:
                yield tokens[end]
            end = self._before[end]

    def _slot(self, gram: array[int]) -> int:
        return hash(tuple(gram)) & (len(self._latest) - 1)
