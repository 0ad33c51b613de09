"""Tokens a pass of the drafters that cost nothing: lookup in the sequence's own text, token recycling, and both.

    python bench/free_drafters.py TEXT [--prompts 60] [--prompt-tokens 200] [--tokens 128] [--nodes 1 4 16 64]
        [--temperature 0]

On the demo model, from prompts cut from TEXT at even distances. Trees grow best first by calibrated chances.
Recycling starts anew with each prompt, or (kept) with what all prompts before it taught.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from penstock import LLM, SamplingParams
from penstock.checkpoints.store import DEMO
from penstock.models.rows import Rows, SequenceRows
from penstock.sampling import Sampler
from penstock.speculate.calibration import Calibration
from penstock.speculate.drafter import Drafter
from penstock.speculate.lookup import Lookup
from penstock.speculate.recycling import Recycling
from penstock.speculate.tree import Claim, Tree

Drafters = list[Drafter]
SEED = 0


class Key:
    """Stands for a sequence."""


class Bench:
    """Decoding with trees of guesses."""

    def __init__(self, llm: LLM, sampler: Sampler, tokens: int, nodes: int) -> None:
        self._llm = llm
        self._sampler = sampler
        self._tokens = tokens
        self._nodes = nodes
        self._calibration = Calibration()
        self.passes = 0
        self.draft_seconds = 0.0

    def decode(self, prompt: Sequence[int], drafters: Drafters) -> list[int]:
        """The tokens after a prompt, at least as many as wanted."""
        cache, key, context = self._llm.new_cache(), Key(), list(prompt)
        self._llm.model.forward(prompt[:-1], 0, cache)
        while (left := len(prompt) + self._tokens - len(context)) > 0:
            tree = self._grow(Tree(key, context, self._sampler, cache, left - 1), drafters)
            logits, _ = self._llm.chain.run(Rows([SequenceRows.tree(cache, tree.tokens, tree.parents)]))
            walk, drawn = follow(tree, logits)
            cache.keep([cache.length + node for node in walk])
            self._learn(tree, walk, drawn, logits, drafters)
            context = context + drawn
            self.passes += 1
        return context[len(prompt) :]

    def _grow(self, tree: Tree, drafters: Drafters) -> Tree:
        """The tree with the likeliest guesses, one after the other."""
        begin = time.perf_counter()
        for drafter in drafters:
            drafter.begin([tree])
        heap = list(self._children(tree, 0, drafters))
        heapq.heapify(heap)
        while heap and len(tree) <= self._nodes:
            chance, parent, token, claims = heapq.heappop(heap)
            node = tree.add(parent, token, -chance, claims)
            for child in self._children(tree, node, drafters):
                heapq.heappush(heap, child)
        self.draft_seconds += time.perf_counter() - begin
        return tree

    def _children(
        self, tree: Tree, node: int, drafters: Drafters
    ) -> Iterator[tuple[float, int, int, tuple[Claim, ...]]]:
        depth = tree.depth(node) + 1
        if depth > tree.deepest:
            return
        claims: dict[int, tuple[Claim, ...]] = {}
        for drafter in drafters:
            for guess in drafter.expand([(tree, node)])[0]:
                claims[guess.token] = (*claims.get(guess.token, ()), Claim(drafter.name, guess.score))
        for token, of_token in claims.items():
            chance = max(self._calibration.chance(claim, depth) for claim in of_token)
            yield -chance * tree.chances[node], node, token, of_token

    def _learn(self, tree: Tree, walk: list[int], drawn: list[int], logits: np.ndarray, drafters: Drafters) -> None:
        begin = time.perf_counter()
        self._calibration.learn(tree, drawn)
        for drafter in drafters:
            drafter.learn(tree, walk, logits)
        self.draft_seconds += time.perf_counter() - begin


def follow(tree: Tree, logits: np.ndarray) -> tuple[list[int], list[int]]:
    """The nodes that the target's choices lead to, and the choices."""
    walk: list[int] = []
    drawn: list[int] = []
    node: int | None = 0
    while node is not None:
        walk.append(node)
        drawn.append(tree.sampler(logits[node], len(tree.context) + len(drawn), ()))
        node = tree.child(node, drawn[-1])
    return walk, drawn


def contestants(vocab_size: int) -> dict[str, Callable[[], Drafters]]:
    """What makes the drafters for a prompt, by name."""
    kept = Recycling(vocab_size)
    return {
        "lookup": lambda: [Lookup()],
        "recycling": lambda: [Recycling(vocab_size)],
        "recycling, kept": lambda: [kept],
        "both": lambda: [Lookup(), Recycling(vocab_size)],
        "both, kept": lambda: [Lookup(), kept],
    }


def cut(llm: LLM, text: str, prompts: int, length: int) -> list[list[int]]:
    tokens = llm.encode(text)
    return [tokens[begin : begin + length] for begin in np.linspace(1, len(tokens) - length, prompts, dtype=int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--temperature", type=float, default=0)
    args = parser.parse_args()
    with LLM.open(DEMO) as llm:
        prompts = cut(llm, args.text.read_text(encoding="utf-8"), args.prompts, args.prompt_tokens)
        params = SamplingParams(args.temperature, 1, 0, 0, 1, seed=SEED, max_tokens=args.tokens, ignore_eos=True)
        plain = [list(output.token_ids) for output in llm.generate(prompts, params)]
        sampler = Sampler(params.rule(llm.defaults), SEED, llm.kernels)
        for nodes in args.nodes:
            for name, make in contestants(llm.config.vocab_size).items():
                bench = Bench(llm, sampler, args.tokens, nodes)
                assert [bench.decode(prompt, make()) for prompt in prompts] == plain
                rate = args.tokens * len(prompts) / bench.passes
                print(
                    f"{nodes:3} nodes  {name:16} {rate:5.2f} tokens a pass,"
                    f" {1000 * bench.draft_seconds / bench.passes:6.2f} ms of drafting",
                    flush=True,
                )


if __name__ == "__main__":
    main()
