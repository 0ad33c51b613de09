"""What prompts begin with, read from the disk where an earlier run computed it, and written there once a pass has.

What is in a cache that was lent may come from anywhere, so it is not written, unless its owner says that it comes from
passes alone: as a session does that has no file, which would have it too. Any sequence that begins may be read for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from penstock.errors import MemoryCeilingError, StageLostError
from penstock.memory.budget import LEAST_CHUNK_ROWS
from penstock.models.kv_cache import BLOCK_SLOTS, KvCount
from penstock.prefix_cache.keys import block_keys
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.engine.sequence import Sequence
    from penstock.memory.memory import Memory
    from penstock.models.chain import Chain
    from penstock.prefix_cache.folder import BlockFolder

LEAST_BLOCKS = 4
"""Of a prompt that is looked for, and kept: below 128 tokens files are not worth their trouble. Beyond, a block is read
in a hundredth of the time that computing it takes, also where all weights are in memory (docs/benchmarks.md)."""


class StoredPrefixes:
    """Blocks of sequences on the disk."""

    def __init__(self, folder: BlockFolder, root: Callable[[str | None], bytes], chain: Chain, memory: Memory) -> None:
        """`root`: what the keys of sequences begin with that go through an adapter of that name, or none."""
        self.folder = folder
        self._root = root
        self.chain = chain
        self._memory = memory

    def count(self, sequence: Sequence) -> int:
        """How many of a sequence's first blocks are there; 0 where they are too few to be worth reading. The last token
        is not among them: its logits are wanted."""
        tokens = sequence.adoptable
        whole, count = (len(tokens) - 1) // BLOCK_SLOTS, 0
        if whole < LEAST_BLOCKS:
            return 0
        for key in self._keys(sequence, tokens, whole):
            if not self.folder.has(key):
                break
            count += 1
        return count if count >= LEAST_BLOCKS else 0

    def load(self, sequence: Sequence, count: int) -> None:
        """Fill a sequence's cache, which has whole blocks, up to `count` of them; up to a damaged one where there is
        one, and not at all where memory has no room."""
        cache, keys = sequence.cache, self._keys(sequence, sequence.adoptable, count)
        size = self.folder.block_bytes
        try:
            more = KvCount(told_bytes=size)  # for the buffer
            need = self._memory.need({cache: count * BLOCK_SLOTS}, LEAST_CHUNK_ROWS, 1, more=more)
            self.chain.make_room(need)
        except MemoryCeilingError:
            return
        buffer = page_array(size)
        for key in keys[cache.length // BLOCK_SLOTS :]:
            if not self.folder.read(key, buffer):
                break
            self.chain.append_block(cache, buffer)
        self.folder.touch(keys[: cache.length // BLOCK_SLOTS])

    def keep(self, sequence: Sequence) -> None:
        """Write what a pass has computed of a sequence's prompt, and of earlier passes what is not there."""
        cache, prompt = sequence.cache, sequence.prompt
        whole = min(cache.length, len(prompt)) // BLOCK_SLOTS
        if whole <= sequence.kept_blocks or len(prompt) < LEAST_BLOCKS * BLOCK_SLOTS:
            return
        if sequence.error is not None or not sequence.stores_prompt:
            return
        keys = self._keys(sequence, prompt, whole)
        with suppress(StageLostError):  # told when its layers are needed: what the pass has drawn counts
            self.folder.keep(keys, lambda number: self.chain.read_block(cache, number))
            sequence.kept_blocks = whole

    def _keys(self, sequence: Sequence, tokens: list[int], count: int) -> list[bytes]:
        return block_keys(self._root(sequence.cache.adapter), tokens, count)
