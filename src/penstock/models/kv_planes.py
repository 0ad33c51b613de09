"""The bytes of blocks of keys and values, for some layers of a model.

A block is one allocation of BLOCK_SLOTS slots: [layers][key, value][kv_heads][BLOCK_SLOTS][head_dim]. It is there from
when a pass first writes to it until the engine says that nobody has it any more (kv_cache.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.kernels import KvLayer
from penstock.models.kv_cache import BLOCK_SLOTS, CopyBlock, FreeBlocks, blocks_for
from penstock.models.kv_dtypes import KV_ITEM_BYTES, check_kv_dtype
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from penstock.architectures.config import ModelConfig
    from penstock.models.kv_cache import CacheOp, NumberedOp, Outbox

    U8 = npt.NDArray[np.uint8]
    U64 = npt.NDArray[np.uint64]


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
        check_kv_dtype(dtype)
        count = config.num_hidden_layers if layers is None else layers
        return cls(count, config.num_key_value_heads, config.head_dim, dtype)

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
        return blocks_for(slots) * self.block_bytes


class KvPlanes:
    """Keys and values of layers `layers`."""

    def __init__(self, shape: KvShape, layers: Sequence[int], outbox: Outbox) -> None:
        """`shape`: of these layers alone; `outbox`: what is still to be done to the blocks."""
        self.shape = shape
        self.outbox = outbox
        self._index = {layer: index for index, layer in enumerate(layers)}
        self._blocks: dict[int, U8] = {}
        self._addresses: dict[int, int] = {}
        self._done = -1
        """The number of the last thing that was done."""

    @property
    def nbytes(self) -> int:
        return len(self._blocks) * self.shape.block_bytes

    def apply(self, ops: Iterable[NumberedOp]) -> None:
        """Do what the outbox has, as far as it was not done before."""
        for number, op in ops:
            if number > self._done:
                self._do(op)
                self._done = number

    def settle(self) -> None:
        """Do all that is still to be done."""
        ops = self.outbox.pending()
        self.apply(ops)
        self.outbox.done(ops)

    def addresses(self, blocks: Sequence[int]) -> U64:
        """Where blocks are, uint64 [len(blocks)]; those that are not there yet are made. Valid until `apply`."""
        for name in blocks:
            if name not in self._addresses:
                self._block(name)
        return np.fromiter(map(self._addresses.__getitem__, blocks), np.uint64, len(blocks))

    def layer(self, layer: int, addresses: U64) -> KvLayer:
        """The kernels' view of one layer of some blocks."""
        shape = self.shape
        keys = 2 * self._index[layer] * shape.plane_bytes
        return KvLayer(
            addresses, BLOCK_SLOTS, keys, keys + shape.plane_bytes, shape.kv_heads, shape.head_dim, shape.dtype
        )

    def read_slot(self, blocks: Sequence[int], slot: int) -> U8:
        """One slot's keys and values, uint8 [layers, bytes of a layer]: [key, value][kv_heads][head_dim] of each."""
        data = self._slot(blocks[slot // BLOCK_SLOTS], slot % BLOCK_SLOTS)
        return data.reshape(self.shape.layers, 2 * self.shape.plane_bytes // BLOCK_SLOTS)

    def write_slot(self, blocks: Sequence[int], slot: int, data: U8) -> None:
        """Put what `read_slot` gave into a slot."""
        target = self._slot(blocks[slot // BLOCK_SLOTS], slot % BLOCK_SLOTS)
        target[:] = data.reshape(target.shape)

    def read_slots(self, blocks: Sequence[int], first: int, end: int) -> U8:
        """As `read_slot`, of slots [first, end): uint8 [end - first, layers, bytes of a layer]."""
        return np.stack([self.read_slot(blocks, slot) for slot in range(first, end)])

    def write_slots(self, blocks: Sequence[int], first: int, data: U8) -> None:
        """Put what `read_slots` gave into slots from `first` on."""
        for slot, one in enumerate(data, first):
            self.write_slot(blocks, slot, one)

    def read_block(self, block: int) -> U8:
        """A block's keys and values, as they are and not copied: uint8 [layers, bytes of a layer], which are
        [key, value][kv_heads][BLOCK_SLOTS][head_dim]."""
        return self._block(block).reshape(self.shape.layers, 2 * self.shape.plane_bytes)

    def write_block(self, block: int, data: U8) -> None:
        """Put what `read_block` gave into a block."""
        self.read_block(block)[:] = data

    def _do(self, op: CacheOp) -> None:
        """Blocks that nothing was ever written to need nothing."""
        if isinstance(op, FreeBlocks):
            for name in op.blocks:
                self._addresses.pop(name, None)  # before its memory goes
                self._blocks.pop(name, None)
        elif isinstance(op, CopyBlock):
            if op.source in self._blocks:
                self._block(op.target)[:] = self._blocks[op.source]
        else:
            self._slot(*op.target)[:] = self._slot(*op.source)

    def _block(self, name: int) -> U8:
        block = self._blocks.get(name)
        if block is None:
            block = self._blocks[name] = page_array(self.shape.block_bytes)
        if name not in self._addresses:
            self._addresses[name] = block.ctypes.data
        return block

    def _slot(self, block: int, slot: int) -> U8:
        """One slot's bytes over all layers: [layers * 2 * kv_heads, head_dim * item bytes]."""
        shape = self.shape
        vector_bytes = shape.head_dim * KV_ITEM_BYTES[shape.dtype]
        planes = self._block(block).reshape(2 * shape.layers * shape.kv_heads, BLOCK_SLOTS, vector_bytes)
        return planes[:, slot]
