"""Which blocks hold the keys and values of a sequence, and how many of its positions are committed.

A slot is where the key and the value of one token are in every layer. Slots 0..length-1 are committed: slot s holds
logical position s. Slots past `length` belong to rows of the running pass (or to nodes of a token tree, whose logical
positions differ from their slots until `keep` compacts them). A block is BLOCK_SLOTS slots.

Here blocks are names; their bytes are wherever the layers are (kv_planes.py), maybe on several machines. What has to be
done to bytes is noted as data and goes with the next call of a stage; where none follows, `Chain.settle` makes one. It
is numbered, and noted until a stage is known to have done it: wherever Ctrl-C comes, or a read fails, each stage does
everything once.

Sequences that begin alike share their first blocks (PagedAttention, arXiv 2309.06180): the bits of a key depend on
nothing but the tokens up to its own, and nobody writes to committed slots.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_SLOTS = 32


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """The bytes of block `source` into the new block `target`."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class MoveSlot:
    """The bytes of a slot, (block, slot within it), into another."""

    source: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FreeBlocks:
    """Nobody has these blocks any more; their names never come again."""

    blocks: tuple[int, ...]


CacheOp = CopyBlock | MoveSlot | FreeBlocks
NumberedOp = tuple[int, CacheOp]
"""Numbers ascend; doing the same one twice, with nothing in between, does no more than doing it once."""


class Block:
    """A block, as long as any cache has it."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: int) -> None:
        self.name = name


class _Watch(ref[Block]):
    """Remembers the name of a block that is gone."""

    name = -1
    """That of no block, where Ctrl-C came before anybody got this one."""


class Blocks:
    """Names blocks, and tells every stage what has to be done to them."""

    def __init__(self) -> None:
        self._names = count()
        self._numbers = count()
        self._outboxes: list[Outbox] = []
        self._watched: dict[int, _Watch] = {}
        self._gone: deque[_Watch] = deque()

    def new(self) -> Block:
        """A block that nobody has yet."""
        block = Block(next(self._names))
        # Appending is one step of the interpreter: Ctrl-C cannot come amid it.
        watch = _Watch(block, self._gone.append)
        watch.name = block.name
        self._watched[block.name] = watch
        return block

    def outbox(self) -> Outbox:
        """What one more stage has to be told, from now on."""
        self._outboxes.append(Outbox(self))
        return self._outboxes[-1]

    def forget_stages(self) -> None:
        """There are other stages from now on; nobody has a block."""
        self.note_gone()
        self._outboxes.clear()

    def note(self, op: CacheOp) -> None:
        """Tell all stages."""
        numbered = next(self._numbers), op
        for outbox in self._outboxes:
            outbox.ops.append(numbered)

    def note_gone(self) -> None:
        """Tell all stages which blocks nobody has any more."""
        names = [self._gone[index].name for index in range(len(self._gone))]  # more may come at any time
        if names:
            self.note(FreeBlocks(tuple(names)))
        for name in names:  # forgotten after they were noted: freeing them again harms nobody
            self._watched.pop(name, None)
            self._gone.popleft()


class Outbox:
    """What a stage has not done yet, as far as is known."""

    def __init__(self, blocks: Blocks) -> None:
        self.ops: deque[NumberedOp] = deque()
        self.blocks = blocks

    def pending(self) -> tuple[NumberedOp, ...]:
        """All of it, in order."""
        self.blocks.note_gone()
        return tuple(self.ops)

    def forget(self) -> None:
        """The stage is another, which has no blocks."""
        self.blocks.note_gone()
        self.ops.clear()

    def done(self, ops: Sequence[NumberedOp]) -> None:
        """The stage has done these."""
        while ops and self.ops and self.ops[0][0] <= ops[-1][0]:
            self.ops.popleft()


class KvCache:
    """One sequence's cache; grows by blocks, never moves them."""

    def __init__(self, blocks: Blocks, adapter: str | None = None) -> None:
        """`adapter`: the one that its keys and values come through, by name."""
        self.adapter = adapter
        self.length = 0
        self.adopted = 0
        """How many of the first blocks came from another cache."""
        self._shared = 0
        """How many of the first blocks others may have as well: the adopted ones, and those that were adopted."""
        self._names = blocks
        self._blocks: list[Block] = []

    @property
    def n_blocks(self) -> int:
        """Of all blocks, those of others included."""
        return len(self._blocks)

    @property
    def own_blocks(self) -> int:
        """How many blocks were not adopted."""
        return len(self._blocks) - self.adopted

    @property
    def block_names(self) -> list[int]:
        """The same in every cache that has a block."""
        return [block.name for block in self._blocks]

    def reserve(self, slots: int) -> None:
        """Make room for slots 0..slots-1."""
        missing = blocks_for(slots) - len(self._blocks)
        if missing > 0:
            self._blocks = [*self._blocks, *(self._names.new() for _ in range(missing))]

    def adopt(self, other: KvCache, blocks: int) -> None:
        """Begin with the first blocks of another cache, in place of all that this one holds; they count as committed.

        Whoever adopts blocks that are being filled sees to it that they are, before anybody reads them.
        """
        self._blocks = other._blocks[:blocks]
        self.length = blocks * BLOCK_SLOTS
        self.adopted = self._shared = blocks
        other._shared = max(other._shared, blocks)

    def keep(self, slots: Sequence[int]) -> None:
        """Commit the given uncommitted slots, ascending, as the next positions, and drop the rest."""
        for target, source in enumerate(slots, self.length):
            if source != target:
                self._names.note(MoveSlot(self._place(source), self._place(target)))
        self.truncate(self.length + len(slots))

    def truncate(self, length: int) -> None:
        """Commit or go back to `length` positions and give back the blocks past them."""
        self.length = length
        blocks = self._blocks[: blocks_for(length)]
        whole = length // BLOCK_SLOTS
        if whole < min(self._shared, len(blocks)):  # the last one goes on differently here
            copy = self._names.new()
            self._names.note(CopyBlock(blocks[whole].name, copy.name))
            blocks[whole] = copy
        self._shared, self.adopted = min(self._shared, whole), min(self.adopted, whole)
        self._blocks = blocks

    def _place(self, slot: int) -> tuple[int, int]:
        return self._blocks[slot // BLOCK_SLOTS].name, slot % BLOCK_SLOTS


def blocks_for(slots: int) -> int:
    """How many blocks hold so many slots."""
    return -(-slots // BLOCK_SLOTS)


@dataclass(frozen=True, slots=True)
class KvCount:
    """What sequences keep: blocks of caches; as many of a draft model's, which has a cache beside each; and bytes,
    where the engine is, of what is to be told beside tokens."""

    blocks: int = 0
    draft_blocks: int = 0
    told_bytes: int = 0

    def __add__(self, other: KvCount) -> KvCount:
        return KvCount(
            self.blocks + other.blocks,
            self.draft_blocks + other.draft_blocks,
            self.told_bytes + other.told_bytes,
        )

    def times(self, count: int) -> KvCount:
        return KvCount(self.blocks * count, self.draft_blocks * count, self.told_bytes * count)
