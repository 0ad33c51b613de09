"""Every KV cache of an open model: what they take together, and what they were promised.

Blocks that several caches share count once. A draft model has a cache beside each of the target's, for all positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from penstock.memory.prefixes import KeptPrefixes
from penstock.models.kv_cache import BLOCK_SLOTS, KvCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.models.kv_cache import KvShape


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

    def __init__(self, shape: KvShape, draft: KvShape | None, most_kept_bytes: int) -> None:
        self.shape = shape
        self.draft = draft
        """Of a draft model."""
        self.kept = KeptPrefixes(most_kept_bytes)
        self.tellers: WeakSet[Teller] = WeakSet()
        self._promises: WeakKeyDictionary[KvCache, Promise] = WeakKeyDictionary()

    def new(self, most_slots: int = 0) -> KvCache:
        """An empty cache that counts from now on."""
        cache = KvCache(self.shape)
        self.promise(cache, most_slots)
        return cache

    def promise(self, cache: KvCache, most_slots: int, adopted_blocks: int = 0) -> None:
        """Leave room for a cache to grow to so many slots, besides as many blocks that it shares with another."""
        self._promises[cache] = Promise(most_slots, adopted_blocks)

    @property
    def promised(self) -> int:
        """How many caches were promised anything."""
        return sum(promise.most_slots > 0 for promise in self._promises.values())

    @property
    def block_bytes(self) -> int:
        """What one block more takes, with that of a draft model."""
        return self.shape.block_bytes + (self.draft.block_bytes if self.draft is not None else 0)

    def bytes_for(self, slots: int, adopted_blocks: int = 0) -> int:
        """Of one sequence with so many slots, without blocks that are there already."""
        own = max(0, self.shape.bytes_for(slots) - adopted_blocks * self.shape.block_bytes)
        return own + self._draft_bytes(slots)

    def taken(self) -> int:
        """Bytes of every cache and of what is to be told, and of what each may still come to have. What was kept gives
        way, and doesn't count."""
        held = len({block for cache in self._promises for block in cache.block_ids}) * self.shape.block_bytes
        for cache, (slots, adopted) in self._promises.items():
            own = self.shape.bytes_for(slots) - adopted * self.shape.block_bytes
            held += max(0, own - cache.own_bytes) + self._draft_bytes(max(slots, _slots_of(cache)))
        return held + sum(teller.most_told_bytes for teller in self.tellers)

    def bytes_with(self, slots: Mapping[KvCache, int]) -> int:
        """Bytes of every cache as it is, what was kept included, with so many slots in those that are named; and of
        what is to be told."""
        blocks = {block for cache in self._promises for block in cache.block_ids} | self.kept.block_ids()
        counts = {cache: _slots_of(cache) for cache in self._promises} | dict(slots)
        growth = sum(max(0, self.shape.bytes_for(count) - cache.nbytes) for cache, count in slots.items())
        told = sum(teller.told_bytes for teller in self.tellers)
        return len(blocks) * self.shape.block_bytes + growth + sum(map(self._draft_bytes, counts.values())) + told

    def _draft_bytes(self, slots: int) -> int:
        return 0 if self.draft is None else self.draft.bytes_for(slots)


def _slots_of(cache: KvCache) -> int:
    return cache.nbytes // cache.shape.block_bytes * BLOCK_SLOTS
