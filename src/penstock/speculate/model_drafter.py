"""Guesses by a model that is quicker than the target: its own coarse tier, or a smaller model of the same tokenizer.

A tree's nodes go through the drafting model when it is asked about them, many at once, after their ancestors. Their
keys and values lie in slots behind the committed ones of a cache. The target's own cache will do where both models have
the same layers: the drafting model then attends to exact keys and values of all that was said, and the pass that checks
the tree writes exact ones over its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import GrammarError
from penstock.models.logits import Likeliest, largest
from penstock.models.rows import Rows, SequenceRows
from penstock.speculate.drafter import MOST_GUESSES, Guess
from penstock.speculate.sharpness import Sharpness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.kernels import F32, F64, I64
    from penstock.models.decoder import Decoder
    from penstock.models.kv_cache import KvCache
    from penstock.speculate.tree import Tree

LIKELY, SHORTLIST = 128, 8
"""Tokens with the highest logits; and those of them that are likeliest to be drawn, among which the guesses are."""
LEAST_CHANCE = 1e-6
"""Of a guess that is worth telling."""
DRAFT_SHARPNESS = 1.5
"""Of a small model that was trained by itself, measured on the demo pair (sharpness.py)."""
CHUNK_ROWS = 64
"""Rows of the prompt that go through a model with a cache of its own at a time."""


Refine = Callable[["F32", "I64", "F32"], None]
"""(x, tokens, logits): puts better logits [n, m] of hidden rows x[n, hidden_size], for tokens [n, m], in place."""


@dataclass(eq=False)
class _Draft:
    """One tree, as far as it has gone through the drafting model."""

    tree: Tree
    cache: KvCache
    slots: dict[int, int] = field(default_factory=dict)
    hidden: dict[int, F32] = field(default_factory=dict)
    ranked: dict[int, tuple[I64, F64]] = field(default_factory=dict)
    """By node: its slot, its normalised hidden row, and the tokens that may follow with their scores."""

    def enter(self, node: int) -> list[int]:
        """Give slots to a node and its ancestors, and tell those that had none, parents first."""
        new = [n for n in (0, *self.tree.lineage(node)) if n not in self.slots]
        for n in new:
            self.slots[n] = self.cache.length + len(self.slots)
        return new

    def path(self, node: int) -> list[int]:
        """Slots from the root's to the node's."""
        return [self.slots[n] for n in (0, *self.tree.lineage(node))]


class ModelDrafter:
    """Asks a model what it would choose."""

    free = False

    def __init__(
        self,
        name: str,
        model: Decoder,
        through: Callable[[Rows], F32],
        new_cache: Callable[[], KvCache] | None = None,
        refine: Refine | None = None,
        sharpness: float = DRAFT_SHARPNESS,
        target_vocab: int | None = None,
    ) -> None:
        """`model`: its norm and head; `through`: hidden rows [n, hidden_size] after its layers; `new_cache`: for a
        model that cannot use the target's cache; `refine`: a second stage of the head, for tokens on the shortlist;
        `sharpness`: typical for the model; `target_vocab`: tokens of the target, where those are others."""
        self.name = name
        self._model = model
        self._through = through
        self._new_cache = new_cache
        self._refine = refine
        own = model.config.vocab_size
        self._vocab = own if target_vocab is None else min(own, target_vocab)
        """Tokens that both models have: no other is guessed, and in a text the model reads its last one for them."""
        self._sharpness = {sampled: Sharpness(sharpness) for sampled in (False, True)}
        """For greedy and for sampled text."""
        self._drafts: dict[object, _Draft] = {}

    def begin(self, trees: Sequence[Tree]) -> None:
        """Where the model has a cache of its own, bring it up to the roots."""
        for tree in trees:
            self._fit(tree)
            cache = tree.cache if self._new_cache is None else self._caught_up(tree, self._new_cache)
            self._drafts[tree.key] = _Draft(tree, cache)

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        drafts = [self._drafts[tree.key] for tree, _ in nodes]
        self._run(list(zip(drafts, (node for _, node in nodes), strict=True)))
        x = np.stack([draft.hidden[node] for draft, (_, node) in zip(drafts, nodes, strict=True)])
        logits = self._model.head(x)[:, : self._vocab]
        for (tree, node), row in zip(nodes, logits, strict=True):
            _bar(tree, node, row)
        lists = [_shortlist(*spot, row) for spot, row in zip(nodes, logits, strict=True)]
        count = min(map(len, lists))
        tokens = np.sort(np.stack([tokens[:count] for tokens in lists]), axis=1)
        logits = np.take_along_axis(logits, tokens, axis=1)
        if self._refine is not None:
            barred = np.isneginf(logits)
            self._refine(x, tokens, logits)
            logits[barred] = -np.inf
        return [
            self._guesses(draft, node, *row)
            for draft, (_, node), row in zip(drafts, nodes, zip(tokens, logits, strict=True), strict=True)
        ]

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        pass

    def forget(self, key: object) -> None:
        self._drafts.pop(key, None)

    def _guesses(self, draft: _Draft, node: int, tokens: I64, logits: F32) -> list[Guess]:
        tree = draft.tree
        if not np.isfinite(logits.max()):
            return []
        seen = tree.context + tree.path(node)
        ranked = tree.sampler.rank(tokens, logits, len(seen), seen, SHORTLIST, filters=False)
        if tree.sampled:  # back to logits, which the models differ in, whatever the temperature
            ranked = ranked[0], ranked[1] * tree.sampler.rule.temperature
        draft.ranked[node] = ranked
        chances = self._sharpness[tree.sampled].chances(ranked[1])
        pairs = zip(ranked[0][:MOST_GUESSES].tolist(), chances.tolist(), strict=False)
        return [Guess(token, chance) for token, chance in pairs if chance >= LEAST_CHANCE]

    def _fit(self, tree: Tree) -> None:
        """Learn from what was drawn since the sequence's last tree."""
        last = self._drafts.get(tree.key)
        if last is None:
            return
        node: int | None = last.tree.tip
        for token in tree.context[len(last.tree.context) + last.tree.tip :]:
            if node is None:
                return
            if node in last.ranked:
                tokens, scores = last.ranked[node]
                self._sharpness[tree.sampled].learn(scores, np.flatnonzero(tokens == token))
            node = last.tree.child(node, token)

    def _run(self, spots: Sequence[tuple[_Draft, int]]) -> None:
        """Let nodes through the model that have not been, with their ancestors."""
        entering: dict[_Draft, list[int]] = {}
        for draft, node in spots:
            entering.setdefault(draft, []).extend(draft.enter(node))
        entering = {draft: new for draft, new in entering.items() if new}
        if not entering:
            return
        rows = Rows(
            [
                SequenceRows.nodes(d.cache, self._known([d.tree.tokens[n] for n in new]), [d.path(n) for n in new])
                for d, new in entering.items()
            ]
        )
        x = self._through(rows)
        owners = [(draft, node) for draft, new in entering.items() for node in new]
        for (draft, node), row in zip(owners, self._model.final_norm(x), strict=True):
            draft.hidden[node] = row

    def _caught_up(self, tree: Tree, new_cache: Callable[[], KvCache]) -> KvCache:
        """A cache of the model's own with all tokens before the root: what of the last tree was right is kept."""
        last = self._drafts.get(tree.key)
        if last is None:
            cache = new_cache()
        else:
            cache = last.cache
            cache.keep(_kept_slots(last, tree.context))
            self._drafts[tree.key] = _Draft(tree, cache)  # what was kept is not kept again if a read fails below
        begin, end = cache.length, len(tree.context) - 1
        for start in range(begin, end, CHUNK_ROWS):
            tokens = self._known(tree.context[start : min(start + CHUNK_ROWS, end)])
            self._through(Rows([SequenceRows.plain(cache, tokens)]))
            cache.truncate(start + len(tokens))
        return cache

    def _known(self, tokens: Sequence[int]) -> list[int]:
        return [min(token, self._vocab - 1) for token in tokens]


def _bar(tree: Tree, node: int, logits: F32) -> None:
    """Let no token be guessed that the grammar, if there is one, has no place for, unless the likeliest one may follow:
    then the others are looked at when they are guessed, for a mask takes much longer."""
    if tree.matcher is None:
        return
    # Where it is too much to look ahead in, no guess will be taken.
    with suppress(GrammarError), tree.grammar_after(node):
        if not tree.matcher.allows([int(logits.argmax())]):
            logits[~tree.matcher.mask()[: len(logits)]] = -np.inf


def _shortlist(tree: Tree, node: int, logits: F32) -> I64:
    """Tokens that are likely to be drawn, best first."""
    plain = tree.sampler.takes_likeliest
    likely: I64 = largest(logits[None], SHORTLIST if plain else LIKELY)[0]
    if plain:
        return likely
    likely.sort()
    seen = tree.context + tree.path(node)
    return tree.sampler.rank(likely, logits[likely], len(seen), seen, SHORTLIST)[0]


def _kept_slots(draft: _Draft, context: list[int]) -> list[int]:
    """Slots of the nodes that turned out to be in `context`, which begins as the draft's tree did."""
    kept: list[int] = []
    node: int | None = 0
    for token in context[len(draft.tree.context) :]:
        if node is None or node not in draft.slots:
            break
        kept.append(draft.slots[node])
        node = draft.tree.child(node, token)
    return kept
