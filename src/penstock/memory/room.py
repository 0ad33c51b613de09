"""A stage's share of memory: its weights give way to keys, values and activations, and to other programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.memory.budget import ENOUGH_GUESSES, LEAST_CHUNK_ROWS, Demand
from penstock.models.kv_cache import BLOCK_SLOTS, KvCount

if TYPE_CHECKING:
    from penstock.memory.budget import Budget, Plan
    from penstock.memory.pressure import Relief
    from penstock.models.kv_planes import KvShape
    from penstock.models.stage import Need
    from penstock.weights.weights import Weights

USUAL_CONTEXT = 1024
"""Positions that corrections leave room for."""


@dataclass(frozen=True, slots=True)
class StageBudget:
    """What a stage has, as numbers: they tell others what it has room for."""

    budget: Budget
    kv: KvShape
    draft_kv: KvShape | None = None
    """Of a draft model that shares its memory."""
    draft_weights: int = 0
    """Bytes of its weights that guesses are made with."""
    with_engine: bool = True
    """Whether the engine is in the same process, and what it keeps of sequences."""

    def kv_bytes(self, count: KvCount) -> int:
        """What that takes here."""
        draft = 0 if self.draft_kv is None else self.draft_kv.block_bytes
        told = count.told_bytes * self.with_engine
        return count.blocks * self.kv.block_bytes + count.draft_blocks * draft + told

    @property
    def guess_bytes(self) -> int:
        """Slots of a guess: one while it is made, of nodes some of which are dropped, and one while it is checked."""
        return 2 * self.kv_bytes(KvCount(1, 1)) // BLOCK_SLOTS

    def correction_rank(self, component: int, most: int) -> int:
        """How many components of corrections are worth their room (Budget), beside a context of usual length."""
        kv = self.kv.bytes_for(USUAL_CONTEXT) + ENOUGH_GUESSES * self.guess_bytes
        return self.budget.correction_rank(self.draft_weights, component, most, kv)

    def demand(self, need: Need) -> Demand:
        """What a pass asks for here, in bytes."""
        kv = self.kv_bytes(need.kv) + need.guesses * self.guess_bytes
        return Demand(need.rows, need.logit_rows, kv, need.ranked_rows, need.scored_rows)

    def plan(self, need: Need) -> Plan:
        """How the ceiling is shared out in such a pass. Raises MemoryCeilingError."""
        return self.budget.plan(self.demand(need))

    def without_draft(self, nbytes: int) -> StageBudget:
        """Once a draft model is gone, and so many bytes with it."""
        return replace(self, budget=replace(self.budget, draft=self.budget.draft - nbytes), draft_kv=None)


class StageRoom:
    """Keeps a stage within its budget."""

    def __init__(
        self, share: StageBudget, weights: Weights, relief: Relief | None = None, max_resident: int | None = None
    ) -> None:
        """`relief`: gives weights back under pressure; `max_resident`: most bytes of weights to keep in any case.
        Raises MemoryCeilingError where not even a short pass fits."""
        self.share = share
        self.plan: Plan = share.budget.plan(Demand(LEAST_CHUNK_ROWS, 1, share.kv_bytes(KvCount(1))))
        """Of the latest pass."""
        self._weights = weights
        self._relief = relief
        self.max_resident = max_resident
        """May be changed between passes."""

    def make(self, need: Need) -> None:
        """Make room for a pass. Raises MemoryCeilingError where there is none, even without resident weights."""
        self.plan = self.share.plan(need)
        self._limit()

    def make_beside(self, need: Need) -> None:
        """Make room where the latest pass left too little, until the next one. Raises MemoryCeilingError."""
        plan = self.share.plan(need)
        if plan.resident < self.plan.resident:
            self.plan = plan
            self._limit()

    def relieve(self) -> None:
        """Give weights back if other programs need the memory; to be called every now and then."""
        relief = self._relief
        if relief is not None and relief.due and relief.check(self._weights.resident_bytes, self.plan.resident):
            self._limit()

    @property
    def pressed(self) -> bool:
        """Whether other programs need memory."""
        return self._relief is not None and self._relief.limit is not None

    def _limit(self) -> None:
        limits = [self.plan.resident, self.max_resident, self._relief.limit if self._relief is not None else None]
        self._weights.limit_resident(min(limit for limit in limits if limit is not None))
