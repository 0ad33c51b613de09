"""The keys and values of one sequence, in blocks that are allocated as it grows.

A slot holds the key and the value of one token in every layer. Slots 0..length-1 are committed: slot s holds
logical position s. Slots past `length` belong to rows of the running pass (or to nodes of a token tree, whose logical
positions differ from their slots until `keep` compacts them).

A block is one allocation of BLOCK_SLOTS slots: [layers][key, value][kv_heads][BLOCK_SLOTS][head_dim]. Caches of
sequences that begin alike share their first blocks: the bits of a key depend on nothing but the tokens up to its own,
and nobody writes to committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.kernels import KvLayer
from penstock.errors import UsageError
from penstock.system.pages import page_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from penstock.architectures.config import ModelConfig

BLOCK_SLOTS = 32
KV_ITEM_BYTES = {"bf16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a slot holds, and how many bytes that takes."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, config: ModelConfig, dtype: str, layers: int | None = None) -> KvShape:
        """The shape for all layers of a model, or for `layers` of them.

        Raises UsageError for a type other than bf16 and f32.
        """
        if dtype not in KV_ITEM_BYTES:
            raise UsageError(f"kv_dtype={dtype!r} is not known.", f"Use one of: {', '.join(KV_ITEM_BYTES)}.")
        return cls(
            config.num_hidden_layers if layers is None else layers, config.num_key_value_heads, config.head_dim, dtype
        )

    @property
    def plane_bytes(self) -> int:
        """Bytes of one layer's keys (or values) in a block."""
        return self.kv_heads * BLOCK_SLOTS * self.head_dim * KV_ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return 2 * self.layers * self.plane_bytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of one position's keys and values in every layer."""
        return self.block_bytes // BLOCK_SLOTS

    def bytes_for(self, slots: int) -> int:
        """Bytes of the blocks that hold `slots` slots."""
        return -(-slots // BLOCK_SLOTS) * self.block_bytes


class KvCache:
    """One sequence's cache; grows by blocks, never moves them."""

    def __init__(self, shape: KvShape) -> None:
        self.shape = shape
        self.length = 0
        self.adopted = 0
        """How many of the first blocks came from another cache."""
        self._shared = 0
        """How many of the first blocks others may have as well: the adopted ones, and those that were adopted."""
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._addresses = np.empty(0, np.uint64)

    @property
    def nbytes(self) -> int:
        """Of all blocks, those of others included."""
        return len(self._blocks) * self.shape.block_bytes

    @property
    def own_bytes(self) -> int:
        """Of the blocks that were not adopted."""
        return (len(self._blocks) - self.adopted) * self.shape.block_bytes

    @property
    def block_ids(self) -> list[int]:
        """A name of each block, the same in every cache that has it."""
        addresses: list[int] = self._addresses.tolist()
        return addresses

    def reserve(self, slots: int) -> None:
        """Make room for slots 0..slots-1."""
        missing = -(-slots // BLOCK_SLOTS) - len(self._blocks)
        if missing > 0:
            self._set_blocks([*self._blocks, *(page_array(self.shape.block_bytes) for _ in range(missing))])

    def adopt(self, other: KvCache, blocks: int) -> None:
        """Begin with the first blocks of another cache, in place of all that this one holds; they count as committed.

        Whoever adopts blocks that are being filled sees to it that they are, before anybody reads them.
        """
        self._set_blocks(other._blocks[:blocks])
        self.length = blocks * BLOCK_SLOTS
        self.adopted = self._shared = blocks
        other._shared = max(other._shared, blocks)

    def layer(self, index: int) -> KvLayer:
        """The kernels' view of one layer; valid until the next `reserve`, `keep` or `truncate`."""
        shape = self.shape
        keys = 2 * index * shape.plane_bytes
        return KvLayer(
            self._addresses, BLOCK_SLOTS, keys, keys + shape.plane_bytes, shape.kv_heads, shape.head_dim, shape.dtype
        )

    def keep(self, slots: npt.NDArray[np.integer]) -> None:
        """Commit the given uncommitted slots, ascending, as the next positions, and drop the rest."""
        for target, source in enumerate(slots.tolist(), self.length):
            if target != source:
                self._slot(target)[:] = self._slot(source)
        self.truncate(self.length + len(slots))

    def read_slot(self, slot: int) -> bytes:
        """One slot's keys and values, shape.slot_bytes bytes: [layers][key, value][kv_heads][head_dim]."""
        return self._slot(slot).tobytes()

    def append_slot(self, data: bytes) -> None:
        """Commit what `read_slot` gave as the next position, in place of what was uncommitted there."""
        self.reserve(self.length + 1)
        target = self._slot(self.length)
        target[:] = np.frombuffer(data, np.uint8).reshape(target.shape)
        self.length += 1

    def truncate(self, length: int) -> None:
        """Commit or go back to `length` positions and free the blocks past them."""
        self.length = length
        blocks = self._blocks[: -(-length // BLOCK_SLOTS)]
        whole = length // BLOCK_SLOTS
        if whole < min(self._shared, len(blocks)):  # the last one goes on differently here
            blocks[whole] = _copy(blocks[whole])
        self._shared, self.adopted = min(self._shared, whole), min(self.adopted, whole)
        self._set_blocks(blocks)

    def _set_blocks(self, blocks: list[npt.NDArray[np.uint8]]) -> None:
        kept = self._blocks[: len(blocks)]
        if len(blocks) == len(kept) and all(a is b for a, b in zip(blocks, kept, strict=True)):
            addresses = self._addresses[: len(blocks)]
        else:
            addresses = np.array([block.ctypes.data for block in blocks], np.uint64)
        self._blocks, self._addresses = blocks, addresses  # together, whenever Ctrl-C comes

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """One slot's bytes over all layers: [layers * 2 * kv_heads, head_dim * item bytes]."""
        block = self._blocks[slot // BLOCK_SLOTS]
        return block.reshape(2 * self.shape.layers * self.shape.kv_heads, BLOCK_SLOTS, -1)[:, slot % BLOCK_SLOTS]


def _copy(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    copy = page_array(block.nbytes)
    copy[:] = block
    return copy
