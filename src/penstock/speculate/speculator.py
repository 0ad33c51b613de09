"""Guessing for all sequences of a pass, and learning from what it tells.

Guesses only propose, so a fault in making them, or in learning from them, changes no token and ends no sequence: the
drafter that raises what it should not is asked no more. Errors of the disk and of memory go on to who runs the pass.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.errors import PenstockError
from penstock.speculate.calibration import Calibration
from penstock.speculate.drafter import DrafterFault
from penstock.speculate.grow import MOST_NODES, Growth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.models.logits import Likeliest
    from penstock.models.pass_stats import PassStats
    from penstock.speculate.costs import Costs
    from penstock.speculate.drafter import Drafter
    from penstock.speculate.tree import Tree
    from penstock.speculate.worth import Worth

MOST_FIXED_NODES = 4096
LEAST_ROOM = 32
COLD = 1.02
"""A pass that reads so many times what the next one will has brought weights into memory."""
LEAST_PATIENCE, MOST_PATIENCE = 8, 64
FEW_NODES, NODES_A_TOKEN, FADING = 4, 4, 0.6
"""Where arithmetic takes longer than the disk, every row is paid for, whether its guess is right or not: a pass has few
guesses, or so many for each token that one brought lately, however sure of them drafters are; old passes fade. Few rows
cost least, too, to tell what a row does."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """What became of one sequence's guesses. Counters by depth (1: right after the root), and by drafter."""

    walks: int = 0
    """Passes with a tree, be it a root alone."""
    nodes: int = 0
    """Guesses that were checked."""
    accepted: int = 0
    """Guesses that were right, with all before them."""
    reached: Counter[int] = field(default_factory=Counter)
    """By depth: passes that came to a node with guesses of that depth behind it."""
    right: Counter[int] = field(default_factory=Counter)
    """Of them, those in which one was right."""
    drafter_reached: Counter[str] = field(default_factory=Counter)
    drafter_right: Counter[str] = field(default_factory=Counter)

    def take(self, tree: Tree, drawn: Sequence[int]) -> None:
        """Count a pass over a tree, after which `drawn` was drawn."""
        self.walks += 1
        self.nodes += tree.guesses
        node: int | None = tree.tip
        for depth, token in enumerate(drawn, 1):
            if node is None or not tree.children(node):
                return
            self.reached[depth] += 1
            drafters = {claim.drafter for child in tree.children(node) for claim in tree.claims[child]}
            self.drafter_reached.update(drafters)
            node = tree.child(node, token)
            if node is not None:
                self.accepted += 1
                self.right[depth] += 1
                self.drafter_right.update({claim.drafter for claim in tree.claims[node]})


def walk(tree: Tree, draw: Callable[[int], Sequence[int] | None]) -> list[int]:
    """Follow the target's own choices: the nodes they come to, the trunk's first.

    `draw` gives the tokens that come after a node, the target's and those that a grammar forces after it; none where
    the sequence ends; and None where the pass does not tell the target's, so that the node has to be computed anew. All
    that it emits are the target's draws, so guesses change nothing but the number of passes.
    """
    nodes = list(range(tree.tip + 1))
    while tokens := draw(nodes[-1]):
        for token in tokens:
            node = tree.child(nodes[-1], token)
            if node is None:
                return nodes
            nodes.append(node)
    return nodes if tokens is not None else nodes[:-1]


class Speculator:
    """The drafters of one model, and what is known of their worth."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        costs: Costs,
        fixed: int | None = None,
        worth: Worth | None = None,
        drop: Callable[[], None] = lambda: None,
    ) -> None:
        """`fixed`: guesses a sequence and pass; None lets measured costs decide. `worth`: of the drafter that takes
        memory from the weights; where it turns out not to pay, it is asked no more, and `drop` is called."""
        self.drafters = list(drafters)
        self.costs = costs
        self.fixed = fixed
        self._worth = worth
        self._drop = drop
        self._calibrations = {False: Calibration(), True: Calibration()}
        """For greedy and for sampled text."""
        self._grown: dict[object, Tree] = {}
        self._room = MOST_NODES
        """Nodes that memory is reserved for: not many more than are used, and changing seldom."""
        self._idle = 0
        """Passes since a drafter that takes time was last asked."""
        self._patience = LEAST_PATIENCE
        """After so many it is asked once, since texts change."""
        self._earned = float(FEW_NODES)
        """Guesses that a sequence may have in a pass where arithmetic takes longer than the disk."""

    @property
    def most_nodes(self) -> int:
        """Guesses that a pass may have at most, for all sequences together."""
        return self._room if self.fixed is None else MOST_FIXED_NODES

    def guess(self, roots: Sequence[Tree], other_rows: int, most_nodes: int) -> list[Tree]:
        """The trees that a pass should check, in the order of their roots; a tree may be a root alone."""
        blind = self.fixed is None and not self.costs.known
        if not self.drafters or self.fixed == 0 or blind or not any(root.deepest for root in roots):
            return list(roots)
        for drafter in list(self.drafters):
            with self._only_proposing(drafter):
                drafter.begin(roots)
        with self._only_proposing(*self.drafters):
            return self._grow(roots, other_rows, most_nodes)
        return [root.largest(0) for root in roots]

    def _grow(self, roots: Sequence[Tree], other_rows: int, most_nodes: int) -> list[Tree]:
        explore = self._idle >= self._patience
        if self.fixed is None and not self.costs.disk_bound:
            most_nodes = min(most_nodes, int(self._earned * len(roots)))
        growth = Growth(
            roots, self.drafters, self._calibrations, self.costs, other_rows, self.fixed, most_nodes, explore
        )
        trees = growth.run()
        self._idle = 0 if growth.asked else self._idle + 1
        if explore:
            self._patience = min(MOST_PATIENCE, 2 * self._patience)
        self._adapt(sum(tree.guesses for tree in trees))
        self._grown = {root.key: root for root in roots}
        return trees

    @contextmanager
    def _only_proposing(self, *drafters: Drafter) -> Iterator[None]:
        """Where what is done within raises anything but a PenstockError, go on without these drafters, or without the
        one that is known to have raised it."""
        try:
            yield
        except PenstockError:
            raise
        except Exception as error:
            failed = (error.drafter,) if isinstance(error, DrafterFault) else drafters
            names = ", ".join(drafter.name for drafter in failed)
            log.exception("Guesses failed, which no token depends on. Not asked for any more are those of: %s", names)
            self._part_with(failed)

    def _adapt(self, nodes: int) -> None:
        if 4 * nodes < self._room:
            self._room = max(LEAST_ROOM, self._room // 2)
        elif 4 * nodes > 3 * self._room:
            self._room = min(MOST_NODES, self._room * 2)

    def learn(self, tree: Tree, nodes: Sequence[int], drawn: Sequence[int], likeliest: Likeliest) -> None:
        """Take in one tree's walk."""
        with self._only_proposing(*self.drafters):
            grown = self._grown.pop(tree.key, tree)
            self._calibrations[tree.sampled].learn(grown, drawn)
            self._earned = max(FEW_NODES, NODES_A_TOKEN * len(nodes), FADING * self._earned)
            if len(nodes) > 1:
                self._patience = LEAST_PATIENCE
            if self._worth is not None:
                self._worth.learn(grown, drawn, len(nodes) - 1)
        for drafter in list(self.drafters):
            with self._only_proposing(drafter):
                drafter.learn(tree, nodes, likeliest)

    def forget(self, key: object) -> None:
        """A sequence has ended."""
        self._grown.pop(key, None)
        for drafter in list(self.drafters):
            with self._only_proposing(drafter):
                drafter.forget(key)

    def close(self) -> None:
        """Ask nobody any more."""
        self.drafters.clear()
        self._drop = lambda: None

    def learn_pass(self, stats: PassStats, streamed: int) -> None:
        """Take in a pass, and part with a drafter that does not pay; a fixed number of guesses keeps all.

        `streamed`: bytes that the next pass will read: fewer than this one where it brought weights into memory.
        """
        with self._only_proposing(*self.drafters):
            if stats.bytes_read > COLD * streamed:
                self.costs.learn_cold_pass(stats, streamed)
            else:
                self.costs.learn_pass(stats)
            if self._worth is None or self.fixed is not None:
                return
            self._worth.learn_pass(stats, self.costs.disk_bound)
            if not self._worth.pays():
                self._part_with([drafter for drafter in self.drafters if drafter.name == self._worth.name])

    def _part_with(self, drafters: Sequence[Drafter]) -> None:
        """Ask these no more; the memory of the one that takes any goes to the weights."""
        self.drafters = [drafter for drafter in self.drafters if drafter not in drafters]
        if self._worth is not None and self._worth.name not in [drafter.name for drafter in self.drafters]:
            self._worth = None
            self._drop()
