"""The keys and values of one sequence, in blocks that are allocated as it grows.

A slot holds the key and the value of one token in every layer. Slots 0..length-1 are committed: slot s holds
logical position s. Slots past `length` belong to rows of the running pass (or to nodes of a token tree, whose logical
positions differ from their slots until `keep` compacts them).

A block is one allocation of BLOCK_SLOTS slots: [layers][key, value][kv_heads][BLOCK_SLOTS][head_dim].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.kernels import KvLayer
from penstock.pages import page_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from penstock.config import ModelConfig

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
    def of(cls, config: ModelConfig, layers: int, dtype: str) -> KvShape:
        """The shape for `layers` layers of a model. Raises UsageError for a type other than bf16 and f32."""
        if dtype not in KV_ITEM_BYTES:
            raise UsageError(f"kv_dtype={dtype!r} is not known.", f"Use one of: {', '.join(KV_ITEM_BYTES)}.")
        return cls(layers, config.num_key_value_heads, config.head_dim, dtype)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one layer's keys (or values) in a block."""
        return self.kv_heads * BLOCK_SLOTS * self.head_dim * KV_ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return 2 * self.layers * self.plane_bytes

    def bytes_for(self, slots: int) -> int:
        """Bytes of the blocks that hold `slots` slots."""
        return -(-slots // BLOCK_SLOTS) * self.block_bytes


class KvCache:
    """One sequence's cache; grows by blocks, never moves them."""

    def __init__(self, shape: KvShape) -> None:
        self.shape = shape
        self.length = 0
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._addresses = np.empty(0, np.uint64)

    @property
    def nbytes(self) -> int:
        return len(self._blocks) * self.shape.block_bytes

    def reserve(self, slots: int) -> None:
        """Make room for slots 0..slots-1."""
        missing = -(-slots // BLOCK_SLOTS) - len(self._blocks)
        if missing > 0:
            self._blocks += [page_array(self.shape.block_bytes) for _ in range(missing)]
            self._addresses = np.array([block.ctypes.data for block in self._blocks], np.uint64)

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

    def truncate(self, length: int) -> None:
        """Commit or go back to `length` positions and free the blocks past them."""
        self.length = length
        del self._blocks[-(-length // BLOCK_SLOTS) :]
        self._addresses = self._addresses[: len(self._blocks)]

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        """One slot's bytes over all layers: [layers * 2 * kv_heads, head_dim * item bytes]."""
        block = self._blocks[slot // BLOCK_SLOTS]
        return block.reshape(2 * self.shape.layers * self.shape.kv_heads, BLOCK_SLOTS, -1)[:, slot % BLOCK_SLOTS]
