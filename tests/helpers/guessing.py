"""Trees, and drafters that guess what a test says, for the tests of speculation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from helpers.assembled import stage_of
from penstock.compute.kernels import Kernels
from penstock.engine import sequence as engine_sequence
from penstock.engine.engine import Engine
from penstock.models.logits import Likeliest
from penstock.sampling import Sampler, SamplingRule
from penstock.speculate.costs import Costs
from penstock.speculate.drafter import Drafter, Guess
from penstock.speculate.speculator import Speculator
from penstock.speculate.tree import Tree

KERNELS = Kernels(1)


class Key:
    """Stands for a sequence."""


def sampler(seed: int = 0, **rule: Any) -> Sampler:
    return Sampler(SamplingRule(**{"temperature": 0.0} | rule), seed, KERNELS)


def root(context: Sequence[int] = (1,), deepest: int = 99, key: object = None, **rule: Any) -> Tree:
    """A tree of nothing but its root; only tests that run a model need a cache."""
    nothing: Any = SimpleNamespace()
    return Tree(key or Key(), list(context), sampler(**rule), nothing, deepest)


def paths(tree: Tree) -> dict[tuple[int, ...], float]:
    """The chance of each node by the tokens that lead to it."""
    return {tuple(tree.path(node)): tree.chances[node] for node in range(1, len(tree))}


class Scripted:
    """Guesses what `say` tells of (tree, node)."""

    def __init__(
        self, say: Callable[[Tree, int], Iterable[tuple[int, float]]], name: str = "scripted", free: bool = True
    ) -> None:
        self.name = name
        self.free = free
        self.batches: list[list[tuple[Tree, int]]] = []
        self.begun: list[list[Tree]] = []
        self.learned: list[tuple[Tree, list[int], Likeliest]] = []
        self.forgotten: list[object] = []
        self._say = say

    def begin(self, trees: Sequence[Tree]) -> None:
        self.begun.append(list(trees))

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        self.batches.append(list(nodes))
        return [[Guess(*guess) for guess in self._say(tree, node)] for tree, node in nodes]

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        self.learned.append((tree, list(walk), likeliest))

    def forget(self, key: object) -> None:
        self.forgotten.append(key)

    def clear(self) -> None:
        """Let go of what it was told: trees have caches, which count as long as anybody has them."""
        for heard in (self.batches, self.begun, self.learned, self.forgotten):
            heard.clear()

    @property
    def asked(self) -> Iterator[tuple[Tree, int]]:
        for batch in self.batches:
            yield from batch


def knowing(texts: Iterable[Sequence[int]], wrong: Sequence[int] = (), **options: Any) -> Scripted:
    """Guesses what follows in the one of `texts` that begins as the sequence does, and `wrong` tokens beside it."""
    known = [list(text) for text in texts]

    def say(tree: Tree, node: int) -> list[tuple[int, float]]:
        so_far = tree.context + tree.path(node)
        after = [text[len(so_far)] for text in known if text[: len(so_far)] == so_far and len(text) > len(so_far)]
        return [(token, 0.9) for token in after[:1]] + [(token, 0.01) for token in wrong if token not in after[:1]]

    return Scripted(say, **options)


def speculate(engine: Engine, drafters: Sequence[Drafter], fixed: int | None = None) -> Speculator:
    """Let an engine guess."""
    weights = stage_of(engine).decoder.config.hidden_size ** 2
    engine.speculator = Speculator(drafters, Costs(weights), fixed)
    return engine.speculator


def finish(engine: Engine, generations: Sequence[engine_sequence.Sequence]) -> int:
    """Run passes until all have ended: how many it took."""
    passes = 0
    while any(generation.finish_reason is None for generation in generations):
        engine.step()
        passes += 1
    return passes
