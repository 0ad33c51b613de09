"""Keys and values that sequences have in common: computed once, in one set of blocks.

A sequence that has not begun looks for another with the same first tokens: one that runs, one that begins in the same
pass, or one that has ended and whose keys and values were kept. Whole blocks are shared, so nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.models.kv_cache import BLOCK_SLOTS, KvCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from penstock.models.kv_cache import Blocks


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Tokens, and a cache that has the keys and values of the first of them, or will have after the running pass."""

    tokens: Sequence[int]
    cache: KvCache
    length: int
    """Positions that the cache has, or will have."""

    @property
    def blocks(self) -> int:
        return self.length // BLOCK_SLOTS


def common_blocks(there: Sequence[int], tokens: Sequence[int]) -> int:
    """How many whole blocks of `there` are what `tokens` begin with, and go on after: the last logits are wanted."""
    most, blocks = min(len(there), len(tokens) - 1) // BLOCK_SLOTS, 0
    while blocks < most and _block(there, blocks) == _block(tokens, blocks):
        blocks += 1
    return blocks


def _block(tokens: Sequence[int], index: int) -> list[int]:
    return list(tokens[index * BLOCK_SLOTS : (index + 1) * BLOCK_SLOTS])


def longest(prefixes: Iterable[Prefix], tokens: Sequence[int], adapter: str | None = None) -> tuple[Prefix | None, int]:
    """The prefix that has most of `tokens` through the same adapter, and how many blocks of them it has by the end of
    the pass."""
    best, most = None, 0
    for prefix in prefixes:
        if prefix.cache.adapter != adapter:
            continue
        blocks = min(prefix.blocks, common_blocks(prefix.tokens, tokens))
        if blocks > most:
            best, most = prefix, blocks
    return best, most


class KeptPrefixes:
    """Keys and values of sequences that have ended, the latest last, under a limit of blocks."""

    def __init__(self, blocks: Blocks, most_blocks: int) -> None:
        self.most_blocks = most_blocks
        self._blocks = blocks
        self._kept: list[Prefix] = []

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._kept)

    def block_names(self) -> set[int]:
        """Of all blocks, each once."""
        return {block for prefix in self._kept for block in prefix.cache.block_names}

    def keep(self, tokens: Sequence[int], cache: KvCache) -> None:
        """Keep what a sequence that ends has of whole blocks, in place of those that it began with."""
        length = min(cache.length // BLOCK_SLOTS, len(tokens) // BLOCK_SLOTS, self.most_blocks) * BLOCK_SLOTS
        if not length:
            return
        alike = [kept for kept in self._kept if kept.cache.adapter == cache.adapter]
        longer = next((kept for kept in alike if kept.tokens[:length] == tuple(tokens[:length])), None)
        if longer is not None:
            self.touch(longer)
            return
        copy = KvCache(self._blocks, cache.adapter)
        copy.adopt(cache, length // BLOCK_SLOTS)
        new = Prefix(tuple(tokens[:length]), copy, length)
        shorter = {id(kept) for kept in alike if kept.tokens == new.tokens[: kept.length]}
        self._kept = [*(kept for kept in self._kept if id(kept) not in shorter), new]
        while len(self.block_names()) > self.most_blocks:
            self.drop_oldest()

    def touch(self, prefix: Prefix) -> None:
        """It was of use: it is dropped last."""
        if prefix in self._kept:
            self._kept.remove(prefix)
            self._kept.append(prefix)

    def drop_oldest(self) -> bool:
        """Give memory back; False where nothing is kept."""
        if self._kept:
            del self._kept[0]
            return True
        return False

    def clear(self) -> None:
        self._kept.clear()
