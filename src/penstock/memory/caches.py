"""Every KV cache of an open model: what they take together, and what they were promised, in blocks.

Blocks that several caches share count once. A draft model has a cache beside each of the target's, for all positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from penstock.memory.prefixes import KeptPrefixes
from penstock.models.kv_cache import BLOCK_SLOTS, KvCache, KvCount, blocks_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.models.kv_cache import Blocks


class Promise(NamedTuple):
    """How many slots a cache may come to have, and how many blocks of them belong to others as well."""

    most_slots: int
    adopted_blocks: int


class Teller(Protocol):
    """A sequence that keeps something to be told beside its tokens, for as long as anybody has it."""

    @property
    def told_bytes(self) -> int:
        """What it keeps now."""

    @property
    def most_told_bytes(self) -> int:
        """What it may come to keep."""


class Caches:
    """The caches of sequences, wherever they are held, and those that were kept of sequences that have ended."""

    def __init__(self, blocks: Blocks, drafts: bool, most_kept_blocks: int) -> None:
        """`drafts`: whether a draft model has caches too."""
        self.drafts = drafts
        self.kept = KeptPrefixes(blocks, most_kept_blocks)
        self.tellers: WeakSet[Teller] = WeakSet()
        self._blocks = blocks
        self._promises: WeakKeyDictionary[KvCache, Promise] = WeakKeyDictionary()

    def new(self, most_slots: int = 0, adapter: str | None = None) -> KvCache:
        """An empty cache that counts from now on; its keys and values are to come through an adapter."""
        cache = KvCache(self._blocks, adapter)
        self.promise(cache, most_slots)
        return cache

    def promise(self, cache: KvCache, most_slots: int, adopted_blocks: int = 0) -> None:
        """Leave room for a cache to grow to so many slots, besides as many blocks that it shares with another."""
        self._promises[cache] = Promise(most_slots, adopted_blocks)

    def forget(self) -> None:
        """What the caches hold is lost: all are empty."""
        self.kept.clear()
        for cache in [*self._promises]:
            cache.truncate(0)

    @property
    def promised(self) -> int:
        """How many caches were promised anything."""
        return sum(promise.most_slots > 0 for promise in self._promises.values())

    @property
    def one_block(self) -> KvCount:
        """One block more, with that of a draft model."""
        return KvCount(1, int(self.drafts))

    def count_for(self, slots: int, adopted_blocks: int = 0) -> KvCount:
        """Of one sequence with so many slots, without blocks that are there already."""
        return KvCount(max(0, blocks_for(slots) - adopted_blocks), self._drafts(slots))

    def taken(self) -> KvCount:
        """Of every cache and of what is to be told, and of what each may still come to have. What was kept gives way,
        and doesn't count."""
        told = sum(teller.most_told_bytes for teller in self.tellers)
        count = KvCount(len({block for cache in self._promises for block in cache.block_names}), told_bytes=told)
        for cache, (slots, adopted) in self._promises.items():
            growth = max(0, blocks_for(slots) - adopted - cache.own_blocks)
            count += KvCount(growth, self._drafts(max(slots, cache.n_blocks * BLOCK_SLOTS)))
        return count

    def count_with(self, slots: Mapping[KvCache, int]) -> KvCount:
        """Of every cache as it is, what was kept included, with so many slots in those that are named; and of what is
        to be told."""
        blocks = {block for cache in self._promises for block in cache.block_names} | self.kept.block_names()
        counts = {cache: cache.n_blocks * BLOCK_SLOTS for cache in self._promises} | dict(slots)
        growth = sum(max(0, blocks_for(count) - cache.n_blocks) for cache, count in slots.items())
        told = sum(teller.told_bytes for teller in self.tellers)
        return KvCount(len(blocks) + growth, sum(map(self._drafts, counts.values())), told)

    def _drafts(self, slots: int) -> int:
        return blocks_for(slots) if self.drafts else 0
