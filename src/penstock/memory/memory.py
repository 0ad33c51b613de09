"""Keeping the ceiling: weights give way to keys, values and activations before every pass, and to other programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.errors import MemoryCeilingError
from penstock.memory.caches import Caches
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.planning.plan import LEAST_CHUNK_ROWS, MIB, Demand, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from penstock.memory.pressure import Relief
    from penstock.models.kv_cache import KvCache, KvShape
    from penstock.models.rows import Rows
    from penstock.planning.plan import Budget, Plan
    from penstock.weights.weights import Weights

KEPT_SHARE = 8
"""Keys and values of sequences that have ended may take this part of the ceiling."""
CHUNK_SHARE = 4
"""This part of the room for keys and values may be left to the rows of prompts."""


class Memory:
    """The memory of one open model."""

    def __init__(
        self,
        budget: Budget,
        weights: Weights,
        kv_shape: KvShape,
        relief: Relief | None = None,
        max_resident: int | None = None,
        draft_kv: KvShape | None = None,
    ) -> None:
        """`relief`: gives weights back under pressure; `max_resident`: most bytes of weights to keep in any case;
        `draft_kv`: of a draft model, which has a cache for each of the target's."""
        self.budget = budget
        self.plan: Plan = budget.plan(Demand(LEAST_CHUNK_ROWS, 1, kv_shape.bytes_for(1)))
        """Of the latest pass."""
        self.caches = Caches(kv_shape, draft_kv, budget.ceiling // KEPT_SHARE)
        self._weights = weights
        self._relief = relief
        self._max_resident = max_resident

    def new_cache(self, most_slots: int = 0) -> KvCache:
        """An empty KV cache that counts from now on; sequences that come later leave it room for `most_slots`."""
        return self.caches.new(most_slots)

    def admits(self, most_slots: int, adopted_blocks: int = 0, rows: int = 0, told: int = 0) -> bool:
        """Whether one sequence more, which may come to have so many slots, and so many bytes to tell, fits beside all
        that was promised; and beside a pass of `rows` rows, or of as many as a share of the room is enough for."""
        room = self.budget.most_kv(1 + self.caches.promised)
        chunk = min(rows * self.budget.row_bytes, room // CHUNK_SHARE)
        return self.caches.taken() + self.caches.bytes_for(most_slots, adopted_blocks) + told + chunk <= room

    def before_pass(self, rows: Rows, held_logits: int = 0) -> None:
        """Make room for a pass, beside the logits of `held_logits` rows that are kept already.

        Raises MemoryCeilingError where there is none, even without resident weights.
        """
        slots = {s.cache: int(s.slots[-1]) + 1 for s in rows.sequences}
        self._share_out(lambda kv: Demand(len(rows), len(rows.wanted) + held_logits, kv), slots)

    def before_filling(self, cache: KvCache, slots: int) -> None:
        """Make room for keys and values that do not come from a pass. Raises as before_pass does."""
        self._share_out(lambda kv: Demand(LEAST_CHUNK_ROWS, 1, kv), {cache: slots})

    def before_tokenizing(self, nbytes: int) -> None:
        """Make room beside everything that is there, until the next pass. Raises as before_pass does."""
        plan = self.check_tokenizing(nbytes)
        if plan.resident < self.plan.resident:
            self.plan = plan
            self._limit()

    def check_tokenizing(self, nbytes: int) -> Plan:
        """The plan with so many bytes beside everything that is there. Raises MemoryCeilingError."""
        return self._plan(lambda kv: Demand(LEAST_CHUNK_ROWS, 1, kv + nbytes), {})

    def drop_draft(self, nbytes: int) -> None:
        """A draft model has gone, and its keys and values with it: leave its bytes to the weights."""
        self.budget, self.caches.draft = replace(self.budget, draft=self.budget.draft - nbytes), None

    def check(self, cache: KvCache, slots: int, rows: int, logit_rows: int) -> None:
        """Raise MemoryCeilingError unless passes of `rows` rows, each with its logits, may fill a cache so far, beside
        `logit_rows` rows of logits."""
        self._plan(lambda kv: Demand(rows, rows + logit_rows, kv), {cache: slots})

    def relieve(self) -> None:
        """Give weights back if other programs need the memory; to be called every now and then."""
        relief = self._relief
        if relief is not None and relief.due and relief.check(self._weights.resident_bytes, self.plan.resident):
            self._limit()

    @property
    def pressed(self) -> bool:
        """Whether other programs need memory."""
        return self._relief is not None and self._relief.limit is not None

    def most_rows(
        self, slots: Mapping[KvCache, int], logit_rows: int, all_logits: bool = False, wanted: int = LEAST_CHUNK_ROWS
    ) -> int:
        """The longest chunk of prompts that a pass has room for, in rows, where it ends with so many slots a cache.

        Beside the logits of `logit_rows` rows, and those of every row of the chunk where `all_logits`. What was kept of
        sequences that have ended gives way to `wanted` rows.
        """
        while True:
            rows = self.budget.most_rows(self.caches.bytes_with(slots), logit_rows, all_logits)
            if rows >= wanted or not self.caches.kept.drop_oldest():
                return max(LEAST_CHUNK_ROWS, rows)

    def most_guesses(self, slots: Mapping[KvCache, int], rows: int) -> int:
        """Guesses that a pass has room for, which ends with so many slots a cache without them, and has `rows` rows."""
        kv = self.caches.bytes_with(slots) + len(slots) * self.caches.shape.block_bytes
        wanted = self._weights.draft_bytes
        return self.budget.most_guesses(kv, rows, len(slots), self._guess_bytes, wanted)

    def before_guessing(self, slots: Mapping[KvCache, int], rows: int, guesses: int) -> None:
        """Make room for a pass with so many guesses besides, and for making them. Raises as before_pass does."""
        more = len(slots) * self.caches.shape.block_bytes + guesses * self._guess_bytes
        self._share_out(lambda kv: Demand(rows + guesses, len(slots) + guesses, kv + more), slots)

    @property
    def _guess_bytes(self) -> int:
        """Slots of a guess: one while it is made, of nodes some of which are dropped, and one while it is checked."""
        return 2 * self.caches.block_bytes // BLOCK_SLOTS

    def _share_out(self, demand: Callable[[int], Demand], slots: Mapping[KvCache, int]) -> None:
        self.plan = self._plan(demand, slots)
        self._limit()

    def _plan(self, demand: Callable[[int], Demand], slots: Mapping[KvCache, int]) -> Plan:
        """The plan for what is asked beside the bytes of every cache, with so many slots in those that are named. What
        was kept of sequences that have ended gives way."""
        while True:
            try:
                return self.budget.plan(demand(self.caches.bytes_with(slots)))
            except MemoryCeilingError:
                if not self.caches.kept.drop_oldest():
                    raise

    def most_tokens(
        self, prompts: Sequence[int], wanted: int | None, context: int, *, beside_others: bool = True
    ) -> int:
        """How many tokens each of these sequences may yield: `wanted`, or, for None, what half of the room is enough
        for, so that others may follow.

        `prompts`: their lengths; none grows past `context` positions. Sequences that are there already keep what was
        promised to them, unless `beside_others` is False. Raises MemoryCeilingError where the keys and values of all do
        not fit.
        """
        caches = self.caches
        room = self.budget.most_kv(len(prompts)) - (caches.taken() if beside_others else 0)
        if wanted is None:
            blocks = (room - sum(caches.bytes_for(n) for n in prompts)) // 2 // caches.block_bytes
            wanted = max(1, blocks // max(1, len(prompts)) * BLOCK_SLOTS)
        # The last token's keys and values are never computed.
        needed = sum(caches.bytes_for(min(n + wanted, context) - 1) for n in prompts)
        if needed > room:
            least = self.budget.least_ceiling(needed - room)
            raise MemoryCeilingError(
                f"The keys and values of {sum(prompts)} prompt tokens and {wanted} new ones for each of {len(prompts)} "
                f"prompts, {format_bytes(needed)}, do not fit under a ceiling of {self.budget.ceiling // MIB} MiB.",
                f"The least that works is {format_bytes(least)}: raise --memory, or lower --max-tokens.",
            )
        return wanted

    def _limit(self) -> None:
        limits = [self.plan.resident, self._max_resident, self._relief.limit if self._relief is not None else None]
        self._weights.limit_resident(min(limit for limit in limits if limit is not None))
