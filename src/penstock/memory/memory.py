"""Room for sequences: how many, how long, and how many rows a pass may have, whatever stages share the model out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from penstock.errors import MemoryCeilingError
from penstock.memory.budget import LEAST_CHUNK_ROWS
from penstock.memory.caches import Caches
from penstock.models.kv_cache import BLOCK_SLOTS, KvCount
from penstock.models.stage import Need
from penstock.system.sizes import MIB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from penstock.memory.budget import Budget, Plan
    from penstock.memory.room import StageBudget
    from penstock.models.kv_cache import Blocks, KvCache

KEPT_SHARE = 8
"""Keys and values of sequences that have ended may take this part of the ceiling."""
NOTHING = KvCount()
CHUNK_SHARE = 4
"""This part of the room for keys and values may be left to the rows of prompts."""


class Room(Protocol):
    """A stage's share of memory, here or elsewhere."""

    share: StageBudget

    @property
    def plan(self) -> Plan: ...
    @property
    def pressed(self) -> bool: ...
    def make_beside(self, need: Need) -> None: ...


class Memory:
    """The memory of one open model. What has to fit has to fit in every stage."""

    def __init__(self, rooms: Sequence[Room], blocks: Blocks) -> None:
        """`rooms`: of all stages, first that of this process."""
        self.rooms = tuple(rooms)
        most_kept = min(r.share.budget.ceiling // KEPT_SHARE // max(1, r.share.kv.block_bytes) for r in self.rooms)
        self.caches = Caches(blocks, any(r.share.draft_kv is not None for r in self.rooms), most_kept)

    @property
    def budget(self) -> Budget:
        """That of the stage in this process."""
        return self.rooms[0].share.budget

    @property
    def plan(self) -> Plan:
        """How the latest pass shared out the memory of this process."""
        return self.rooms[0].plan

    @property
    def pressed(self) -> bool:
        """Whether other programs need memory."""
        return any(room.pressed for room in self.rooms)

    def new_cache(self, most_slots: int = 0, adapter: str | None = None) -> KvCache:
        """An empty KV cache that counts from now on; sequences that come later leave it room for `most_slots`. What it
        comes to hold goes through `adapter`."""
        return self.caches.new(most_slots, adapter)

    def admits(self, most_slots: int, adopted_blocks: int = 0, rows: int = 0, told: int = 0) -> bool:
        """Whether one sequence more, which may come to have so many slots, and so many bytes to tell, fits beside all
        that was promised; and beside a pass of `rows` rows, or of as many as a share of the room is enough for."""
        sequences, count = 1 + self.caches.promised, self.caches.taken() + KvCount(told_bytes=told)
        count += self.caches.count_for(most_slots, adopted_blocks)
        for share in self._shares:
            room = share.budget.most_kv(sequences)
            chunk = min(rows * share.budget.row_bytes, room // CHUNK_SHARE)
            if share.kv_bytes(count) + chunk > room:
                return False
        return True

    def need(
        self,
        slots: Mapping[KvCache, int],
        rows: int,
        logit_rows: int,
        guesses: int = 0,
        more: KvCount = NOTHING,
        logits: bool = True,
        scored_rows: int = 0,
    ) -> Need:
        """What a pass asks for that ends with so many slots in these caches, and has so many rows besides guesses.

        `logits`: whether all are wanted of guesses; `scored_rows`: of which only scores are told. `more` has to
        fit beside it. What was kept of sequences that have ended gives way. Raises MemoryCeilingError where that is not
        enough.
        """
        more += self.caches.one_block.times(len(slots) * (guesses > 0))

        def need() -> Need:
            kv = self.caches.count_with(slots) + more
            ranked = 0 if logits else guesses
            return Need(rows + guesses, logit_rows + guesses - ranked, kv, ranked, guesses, scored_rows)

        return self._fitting(need)

    def need_to_fill(self, cache: KvCache, slots: int) -> Need:
        """As `need`, where keys and values do not come from a pass."""
        return self.need({cache: slots}, LEAST_CHUNK_ROWS, 1)

    def make_room_beside(self, nbytes: int) -> None:
        """Make room in this process beside everything that is there, until the next pass. Raises MemoryCeilingError."""
        self.rooms[0].make_beside(self._need_beside(nbytes))

    def check_tokenizing(self, nbytes: int) -> None:
        """Raise MemoryCeilingError where so many bytes do not fit beside everything that is there."""
        self._need_beside(nbytes)

    def _need_beside(self, nbytes: int) -> Need:
        return self.need({}, LEAST_CHUNK_ROWS, 1, more=KvCount(told_bytes=nbytes))

    def _fitting(self, need: Callable[[], Need]) -> Need:
        while True:
            asked = need()
            try:
                for share in self._shares:
                    share.plan(asked)
            except MemoryCeilingError:
                if not self.caches.kept.drop_oldest():
                    raise
            else:
                return asked

    def most_rows(
        self,
        slots: Mapping[KvCache, int],
        logit_rows: int,
        all_logits: bool = False,
        wanted: int = LEAST_CHUNK_ROWS,
        scored: bool = False,
    ) -> int:
        """The longest chunk of prompts that a pass has room for, in rows, where it ends with so many slots a cache.

        Beside the logits of `logit_rows` rows, and those of every row of the chunk where `all_logits`, or what scoring
        them takes where `scored`. What was kept of
        sequences that have ended gives way to `wanted` rows.
        """
        while True:
            count = self.caches.count_with(slots)
            rows = min(s.budget.most_rows(s.kv_bytes(count), logit_rows, all_logits, scored) for s in self._shares)
            if rows >= wanted or not self.caches.kept.drop_oldest():
                return max(LEAST_CHUNK_ROWS, rows)

    def most_guesses(self, slots: Mapping[KvCache, int], rows: int, logits: bool = True) -> int:
        """Guesses that a pass has room for, which ends with so many slots a cache without them, and has `rows` rows;
        `logits`: whether all are wanted of guesses."""
        count = self.caches.count_with(slots) + self.caches.one_block.times(len(slots))
        return min(
            s.budget.most_guesses(s.kv_bytes(count), rows, len(slots), s.guess_bytes, s.draft_weights, logits)
            for s in self._shares
        )

    def most_tokens(
        self, prompts: Sequence[int], wanted: int | None, context: int, *, beside_others: bool = True
    ) -> int:
        """How many tokens each of these sequences may yield: `wanted`, or, for None, what half of the room is enough
        for, so that others may follow.

        `prompts`: their lengths; none grows past `context` positions. Sequences that are there already keep what was
        promised to them, unless `beside_others` is False. Raises MemoryCeilingError where the keys and values of all do
        not fit.
        """
        taken = self.caches.taken() if beside_others else KvCount()
        if wanted is None:
            wanted = min(self._half_the_room(share, prompts, taken) for share in self._shares)
        needed = KvCount()
        for n in prompts:  # the last token's keys and values are never computed
            needed += self.caches.count_for(min(n + wanted, context) - 1)
        for share in self._shares:
            room = share.budget.most_kv(len(prompts)) - share.kv_bytes(taken)
            if (nbytes := share.kv_bytes(needed)) > room:
                least = share.budget.least_ceiling(nbytes - room)
                raise MemoryCeilingError(
                    f"The keys and values of {sum(prompts)} prompt tokens and {wanted} new ones for each of "
                    f"{len(prompts)} prompts, {format_bytes(nbytes)}, do not fit under a ceiling of "
                    f"{share.budget.ceiling // MIB} MiB.",
                    f"The least that works is {format_bytes(least)}: raise --memory, or lower --max-tokens.",
                )
        return wanted

    def _half_the_room(self, share: StageBudget, prompts: Sequence[int], taken: KvCount) -> int:
        """Tokens for each of the prompts."""
        room = share.budget.most_kv(len(prompts)) - share.kv_bytes(taken)
        room -= sum(share.kv_bytes(self.caches.count_for(n)) for n in prompts)
        blocks = room // 2 // share.kv_bytes(self.caches.one_block)
        return max(1, blocks // max(1, len(prompts)) * BLOCK_SLOTS)

    def drop_draft(self, nbytes: int) -> None:
        """A draft model has gone, and its keys and values with it: leave its bytes to the weights."""
        self.rooms[0].share, self.caches.drafts = self.rooms[0].share.without_draft(nbytes), False

    @property
    def _shares(self) -> list[StageBudget]:
        return [room.share for room in self.rooms]
