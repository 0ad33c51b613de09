"""How fast a machine gets through weights: as it is measured (stages/probe.py), and for a model's own form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.memory.budget import Plan
    from penstock.weights.sizes import StoredSize


@dataclass(frozen=True, slots=True)
class ComputeSpeed:
    """Matrix products with BF16 weights: of one row with weights from memory, and of many rows.

    `packed_`: with packed weights, which are decoded on the way; their bytes are those of the BF16 that they were.
    """

    row_bytes_per_second: float
    """Bytes of weights that one row gets through in a second."""
    flops_per_second: float
    """Multiplications and additions, each counted, of many rows."""
    packed_row_bytes_per_second: float
    packed_flops_per_second: float
    indexed_row_bytes_per_second: float
    """Bytes of indexed rows that one row gets through in a second."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second with weights in one form."""

    disk_bytes: float
    row_bytes: float
    """Bytes of weights, as they are stored, that a single row is multiplied with in a second, from memory."""
    flops: float
    """Multiplications and additions, each counted, of many rows."""
    indexed_bytes: float
    """Likewise of indexed rows."""

    @classmethod
    def of(cls, size: StoredSize, disk_bytes: float, compute: ComputeSpeed) -> Rates:
        """With weights of such a size, of which some may be decoded on the way."""
        share = size.decoded / size.raw
        raw_bytes = _blend(share, compute.packed_row_bytes_per_second, compute.row_bytes_per_second)
        flops = _blend(share, compute.packed_flops_per_second, compute.flops_per_second)
        return cls(disk_bytes, raw_bytes * size.ratio, flops, compute.indexed_row_bytes_per_second)

    def row_seconds(self, plan: Plan, share: float = 1.0) -> float:
        """Seconds for which a single row is multiplied with the weights, or with a share of the experts, however these
        come from the disk."""
        part = plan.needed(share) / plan.weights
        return part * (plan.resident / self.indexed_bytes if plan.indexed else plan.weights / self.row_bytes)


def _blend(share: float, rate: float, other: float) -> float:
    """The rate of doing `share` of something at one rate, and the rest at the other."""
    return 1 / (share / rate + (1 - share) / other)
