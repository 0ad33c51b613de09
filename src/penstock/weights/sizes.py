"""How many bytes the weights of a pass are in a checkpoint: raw or packed, counted or estimated."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from penstock.architectures.base import Architecture
from penstock.architectures.names import is_embedding, is_expert
from penstock.compute.codec import is_packed, rows_per_chunk
from penstock.compute.indexed import likely_bytes
from penstock.packed_format.layout import STREAM_ALIGNMENT
from penstock.weights.pieces import largest_chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from penstock.architectures.config import ModelConfig
    from penstock.checkpoints.checkpoint import Tensor

PACKED_RATIO, PACKED_ROW_BYTES = 0.672, 10.5
"""Bytes of packed weights to those of BF16, and what every row takes besides. Measured on weights of `penstock synth`,
whose exponents have the entropy that is published for those of Llama-3.1-8B, in rows of 576 to 14,336."""
COARSE_RATIO = 3 / 16
"""Bytes of the coarse tier to those of BF16: 3 bits of 16; the byte a row that it has too is left out."""
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as the original checkpoint has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: "BF16", "F16", "F32"."""

    @property
    def nbytes(self) -> int:
        """In the original checkpoint."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def packs(self) -> bool:
        """Whether a packed checkpoint has it packed."""
        return is_packed(self.shape, self.dtype)

    @property
    def packed_nbytes(self) -> int:
        """About what it takes there; each of its two streams is padded."""
        return int(self.nbytes * PACKED_RATIO + self.shape[0] * PACKED_ROW_BYTES) + STREAM_ALIGNMENT


@dataclass(frozen=True, slots=True)
class StoredSize:
    """The matrices that a pass needs, in bytes."""

    nbytes: int
    """As they are stored."""
    raw: int
    """As they are multiplied: as the original checkpoint has them."""
    decoded: int = 0
    """Of `raw`, those that are stored packed."""
    coarse: int = 0
    """Of `nbytes`, the coarse tier of packed ones."""
    chunk: int = 0
    """The largest chunk, as for Budget."""
    indexed: int = 0
    """What all take where packed ones are kept in indexed rows, as for Budget."""
    estimated: bool = False
    experts: int = 0
    """Of `nbytes`, those of experts."""

    def __add__(self, other: StoredSize) -> StoredSize:
        """Both together; where only one of them can be indexed, the other is kept as it is beside."""
        indexed = (self.indexed or self.nbytes) + (other.indexed or other.nbytes)
        return StoredSize(
            nbytes=self.nbytes + other.nbytes,
            raw=self.raw + other.raw,
            decoded=self.decoded + other.decoded,
            coarse=self.coarse + other.coarse,
            chunk=max(self.chunk, other.chunk),
            indexed=indexed if self.indexed or other.indexed else 0,
            estimated=self.estimated or other.estimated,
            experts=self.experts + other.experts,
        )

    @property
    def ratio(self) -> float:
        """Stored bytes to those of the original checkpoint."""
        return self.nbytes / self.raw


def pass_matrices(config: ModelConfig, dtype: str = "BF16") -> list[Matrix]:
    """Those of a pass, in its order."""
    return [Matrix(name, shape, dtype) for name, shape in Architecture(config).pass_matrices.items()]


def raw_size(matrices: Sequence[Matrix]) -> StoredSize:
    """Of the original checkpoint."""
    nbytes = sum(matrix.nbytes for matrix in matrices)
    return StoredSize(nbytes, nbytes, experts=sum(matrix.nbytes for matrix in matrices if is_expert(matrix.name)))


def packed_size(matrices: Sequence[Matrix]) -> StoredSize | None:
    """Of a packed one, estimated; None where no matrix packs."""
    packing = [matrix for matrix in matrices if matrix.packs]
    if not packing:
        return None
    raw, decoded = (sum(matrix.nbytes for matrix in some) for some in (matrices, packing))
    chunks = (min(m.nbytes, rows_per_chunk(m.shape[1], is_embedding(m.name)) * m.nbytes // m.shape[0]) for m in packing)
    return StoredSize(
        nbytes=raw - decoded + sum(matrix.packed_nbytes for matrix in packing),
        raw=raw,
        decoded=decoded,
        coarse=int(decoded * COARSE_RATIO),
        chunk=int(max(chunks) * (PACKED_RATIO - COARSE_RATIO)),
        indexed=raw - decoded + sum(likely_bytes(*matrix.shape) for matrix in packing),
        estimated=True,
        experts=sum(m.packed_nbytes if m.packs else m.nbytes for m in matrices if is_expert(m.name)),
    )


def size_here(tensors: Sequence[Tensor]) -> StoredSize:
    """Of a checkpoint that is here, raw or packed, by its tensors."""
    return StoredSize(
        nbytes=sum(tensor.nbytes for tensor in tensors),
        raw=sum(tensor.original_nbytes for tensor in tensors),
        decoded=sum(tensor.original_nbytes for tensor in tensors if tensor.in_tiers),
        coarse=sum(tensor.coarse_bytes for tensor in tensors),
        chunk=largest_chunk(tensors),
        indexed=sum(likely_bytes(*t.shape) if t.in_tiers else t.nbytes for t in tensors) * holds_packed(tensors),
        experts=sum(tensor.nbytes for tensor in tensors if is_expert(tensor.name)),
    )


def matrix_of(tensor: Tensor) -> Matrix:
    """A tensor as the original checkpoint has it."""
    return Matrix(tensor.name, tensor.shape, tensor.dtype.value)


def holds_packed(tensors: Iterable[Tensor]) -> bool:
    """Whether any of them is packed."""
    return any(tensor.in_tiers for tensor in tensors)
