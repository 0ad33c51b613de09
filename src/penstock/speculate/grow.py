"""Growing the trees of a pass, best nodes first, as long as that makes tokens come faster.

Free drafters are asked about every node. A drafter that takes time is asked about the nodes that are likeliest to be
reached, many at once, while the tokens that its guesses are likely to bring, relative to those expected, outweigh its
seconds, relative to the pass's (best first, as in arXiv 2406.02532; the price of a node and calibrated chances are
ours). With a fixed number of nodes, it is asked until no node is left that could have a child among the best.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush, nlargest
from typing import TYPE_CHECKING

from penstock.errors import GrammarError
from penstock.speculate.drafter import expand
from penstock.speculate.tree import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.speculate.calibration import Calibration
    from penstock.speculate.costs import Costs
    from penstock.speculate.drafter import Drafter, Guess
    from penstock.speculate.tree import Tree

MOST_NODES = 512
"""Nodes of all trees of a pass together, where their number is the engine's choice."""
LEAST_CHANCE = 1e-3
"""Of a node that is worth a row."""
BATCH = 8
"""Nodes that a drafter which takes time is asked about at once."""
LEAST_OF_BATCH = 0.02
"""A node with less than this share of the best one's chance may wait: its turn may never come, as trees grow deep."""

FORCED = "grammar"
"""Who claims tokens that a grammar forces."""

Spot = tuple["Tree", int]


class Growth:
    """The trees of one pass while they grow."""

    def __init__(
        self,
        trees: Sequence[Tree],
        drafters: Sequence[Drafter],
        calibrations: Mapping[bool, Calibration],
        costs: Costs,
        other_rows: int = 0,
        fixed: int | None = None,
        most_nodes: int = MOST_NODES,
        explore: bool = False,
    ) -> None:
        """`calibrations`: of greedy (False) and of sampled text; `other_rows`: rows of the pass besides those of the
        trees; `fixed`: nodes of each tree, None for as many as pay; `most_nodes`: that all trees together may have;
        `explore`: ask every drafter about the roots, even where that does not seem to pay."""
        self.trees = trees
        self._free = [drafter for drafter in drafters if drafter.free]
        self._paid = [drafter for drafter in drafters if not drafter.free]
        self._better = {drafter.name for drafter in self._paid}
        self._calibrations = calibrations
        self._costs = costs
        self._other_rows = other_rows + len(trees)
        self._fixed = fixed
        self._most_nodes = most_nodes if fixed is None else min(most_nodes, fixed * len(trees))
        self._open: dict[str, list[Spot]] = {
            drafter.name: [(tree, tree.tip) for tree in trees] for drafter in self._paid
        }
        """What each drafter that takes time has not been asked about."""
        self._explore = explore
        self.asked = False
        """Whether a drafter that takes time was asked about anything."""
        self._bars = {id(tree): LEAST_CHANCE if fixed is None else 0.0 for tree in trees}
        """What the chance of a node has to exceed."""
        self._begin = time.perf_counter()

    def run(self) -> list[Tree]:
        """The trees, grown and cut to the nodes that a pass should have."""
        for tree in self.trees:
            self._ask_free([(tree, tree.tip)])
        for drafter in self._paid:
            asked = 0
            while (batch := self._batch(drafter, asked)) and asked < 2 * self._most_nodes:
                self._ask(drafter, batch)
                asked += len(batch)
            self.asked = self.asked or asked > 0
        return self._cut()

    def _ask(self, drafter: Drafter, batch: list[Spot]) -> None:
        asked = {(id(tree), node) for tree, node in batch}
        left = [spot for spot in self._open[drafter.name] if (id(spot[0]), spot[1]) not in asked]
        self._open[drafter.name] = left
        begin = time.perf_counter()
        guesses = expand(drafter, batch)
        self._costs.learn_draft(drafter.name, len(batch), time.perf_counter() - begin)
        new = [spot for spot, some in zip(batch, guesses, strict=True) for spot in self._add(drafter, *spot, some)]
        self._ask_free(new)

    def _ask_free(self, spots: Sequence[Spot]) -> None:
        """Let the free drafters go on from these nodes, likeliest first, as far as guesses are worth a row."""
        heap: list[tuple[float, int, int, Tree]] = []
        for tree, node in spots:
            heappush(heap, (-tree.chances[node], id(tree), node, tree))
        self._raise_bars()
        begin, asked = time.perf_counter(), 0
        while heap and asked < 2 * self._most_nodes and self._free:
            _, _, node, tree = heappop(heap)
            if tree.chances[node] <= self._bars[id(tree)]:
                break
            asked += 1
            for drafter in self._free:
                for _, new in self._add(drafter, tree, node, expand(drafter, [(tree, node)])[0]):
                    heappush(heap, (-tree.chances[new], id(tree), new, tree))
        if asked:
            self._costs.learn_free(asked, time.perf_counter() - begin)

    def _add(self, drafter: Drafter, tree: Tree, node: int, guesses: Sequence[Guess]) -> list[Spot]:
        """The new nodes among a drafter's guesses; what it says of those that are there already counts too."""
        depth, known = tree.depth(node) + 1, list(tree.children(node))
        if depth > tree.deepest or not guesses:
            return []
        try:
            with tree.grammar_after(node):
                guesses = [guess for guess in guesses if tree.matcher is None or tree.matcher.allows([guess.token])]
                new = self._new_nodes(drafter, tree, node, guesses)
        except GrammarError:
            return []  # too much to look ahead in
        if guesses:  # one that rests doubts nothing
            self._weigh(drafter, tree, known, depth)
        for spots in self._open.values():
            spots += new
        return new

    def _new_nodes(self, drafter: Drafter, tree: Tree, node: int, guesses: Sequence[Guess]) -> list[Spot]:
        """Where to go on after those guesses that are new and likely enough. The matcher is behind `node`."""
        depth, new = tree.depth(node) + 1, []
        for guess in guesses:
            claim = Claim(drafter.name, guess.score)
            child = tree.child(node, guess.token)
            if child is not None:
                tree.claims[child] += (claim,)
                continue
            chance = tree.chances[node] * self._chance(tree, (claim,), depth)
            if chance > self._bars[id(tree)]:
                child = tree.add(node, guess.token, chance, (claim,))
                new.append((tree, _to_the_end_of_what_is_forced(tree, child)))
        return new

    def _weigh(self, drafter: Drafter, tree: Tree, nodes: Sequence[int], depth: int) -> None:
        """Let a drafter's word count for nodes that others guessed: also that it does not guess so itself."""
        for node in nodes:
            if drafter in self._paid and all(claim.drafter != drafter.name for claim in tree.claims[node]):
                doubts = tuple(claim._replace(doubter=drafter.name) for claim in tree.claims[node] if not claim.doubter)
                tree.claims[node] += doubts
            chance = tree.chances[tree.parents[node]] * self._chance(tree, tree.claims[node], depth)
            tree.set_chance(node, chance)

    def _chance(self, tree: Tree, claims: Sequence[Claim], depth: int) -> float:
        """The chance of a guess if its parent is right: by the best drafters that made it; by the others, doubted or
        not, where those did not."""
        better = [claim for claim in claims if claim.drafter in self._better and not claim.doubter]
        doubted = [claim for claim in claims if claim.doubter]
        calibration = self._calibrations[tree.sampled]
        return max(calibration.chance(claim, depth) for claim in better or doubted or claims)

    def _batch(self, drafter: Drafter, asked: int) -> list[Spot]:
        """What to ask a drafter about next, after so many nodes; nothing where that is not worth its time."""
        spots = [(tree, node) for tree, node in self._open[drafter.name] if tree.depth(node) < tree.deepest]
        spots = nlargest(BATCH, spots, key=lambda spot: spot[0].chances[spot[1]])
        least = spots[0][0].chances[spots[0][1]] * LEAST_OF_BATCH if spots else 0.0
        spots = [(tree, node) for tree, node in spots if tree.chances[node] >= least]
        if self._fixed is not None:
            self._raise_bars()
            return [(tree, node) for tree, node in spots if tree.chances[node] > self._bars[id(tree)]]
        return self._worthwhile(drafter, spots) or (spots if self._explore and not asked else [])

    def _raise_bars(self) -> None:
        """Where the number of nodes is fixed, a chance that is not among the best so far never will be; else it has to
        be worth a row and the question."""
        if self._fixed is None:
            self._bars = dict.fromkeys(self._bars, self._least_chance())
            return
        for tree in self.trees:
            if tree.guesses >= self._fixed:
                self._bars[id(tree)] = nlargest(self._fixed, tree.chances[tree.tip + 1 :])[-1]

    def _least_chance(self) -> float:
        tokens, count = self._best_count()
        seconds = self._seconds(count)
        if not seconds:
            return LEAST_CHANCE
        return max(LEAST_CHANCE, (self._row_seconds(count) + self._costs.free_seconds) * tokens / seconds)

    def _row_seconds(self, nodes: int) -> float:
        """What one more row takes in a pass with so many nodes."""
        rows = self._other_rows + nodes
        return (self._costs.pass_seconds(rows + BATCH) - self._costs.pass_seconds(rows)) / BATCH

    def _worthwhile(self, drafter: Drafter, spots: list[Spot]) -> list[Spot]:
        tokens, count = self._best_count()
        seconds = self._seconds(count)
        if not seconds:
            return spots  # nothing was ever measured
        worth, gain, row = seconds / tokens, 0.0, self._row_seconds(count)  # a guess has a row at least
        batch: list[Spot] = []
        for tree, node in spots:
            more = self._gain(drafter, tree, node)
            price = self._costs.draft_seconds(drafter.name, len(batch) + 1)
            price -= self._costs.draft_seconds(drafter.name, len(batch)) if batch else 0.0
            if batch and more * worth <= price + row:
                break
            batch.append((tree, node))
            gain += more
        price = self._costs.draft_seconds(drafter.name, len(batch)) + row * len(batch)
        return batch if gain * worth > price else []

    def _gain(self, drafter: Drafter, tree: Tree, node: int) -> float:
        """Tokens that a drafter's guesses after a node are likely to bring beside those that are there."""
        known = sum(tree.chances[child] for child in tree.children(node))
        chance = self._calibrations[tree.sampled].chance_of_any(drafter.name, tree.depth(node) + 1)
        return max(0.0, tree.chances[node] * chance - known)

    def _seconds(self, nodes: int) -> float:
        pass_seconds = self._costs.pass_seconds(self._other_rows + nodes)
        return pass_seconds + time.perf_counter() - self._begin if pass_seconds else 0.0

    def _best_count(self) -> tuple[float, int]:
        """How many of the nodes, likeliest first, make tokens come fastest, and how many tokens that is."""
        chances = nlargest(self._most_nodes, (chance for tree in self.trees for chance in tree.chances[tree.tip + 1 :]))
        tokens = best_tokens = float(len(self.trees))
        rows, elapsed = self._other_rows, time.perf_counter() - self._begin
        best, best_rate = 0, tokens / max(self._costs.pass_seconds(rows) + elapsed, 1e-9)
        for count, chance in enumerate(chances, 1):
            tokens += chance
            rate = tokens / max(self._costs.pass_seconds(rows + count) + elapsed, 1e-9)
            if rate >= best_rate:
                best, best_rate, best_tokens = count, rate, tokens
        return best_tokens, best

    def _cut(self) -> list[Tree]:
        if self._fixed is not None:
            each = min(self._fixed, self._most_nodes // max(1, len(self.trees)))
            return [tree.largest(each) for tree in self.trees]
        _, count = self._best_count()
        every = (
            (tree.chances[node], -node, index)
            for index, tree in enumerate(self.trees)
            for node in range(tree.tip + 1, len(tree))
        )
        kept = [0] * len(self.trees)
        for _, _, index in nlargest(count, every):
            kept[index] += 1
        return [tree.largest(count) for tree, count in zip(self.trees, kept, strict=True)]


def _to_the_end_of_what_is_forced(tree: Tree, node: int) -> int:
    """Add what the grammar forces after a new node; the last of it, after which one can guess again. The matcher is
    behind the node's parent."""
    if tree.matcher is None:
        return node
    try:
        with tree.matcher.after([tree.tokens[node]]):
            forced = tree.matcher.forced()
    except GrammarError:
        return node
    for token in forced:
        if tree.depth(node) >= tree.deepest:
            break
        node = tree.add(node, token, tree.chances[node], (Claim(FORCED, 1.0),))
    return node
