"""How long a pass will take: the disk and the CPU work at the same time, so the slower of the two decides.

Pure functions of numbers: (how memory is shared out, what the machine can do) to seconds. Not in it: the few per cent
by which a pass misses the slower one's time, sampling, and what other programs take of disk and CPU.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.architectures.base import Architecture
    from penstock.forecast.probe import ComputeSpeed
    from penstock.forecast.sizes import StoredSize
    from penstock.memory.budget import Plan


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second, as probe.py measures it."""

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


@dataclass(frozen=True, slots=True)
class Forecast:
    """Passes that produce a token: how many, what they read, and seconds of disk, CPU, and both at once."""

    passes: int
    bytes_read: int
    disk_seconds: float
    compute_seconds: float
    seconds: float


def forecast_token(plan: Plan, rates: Rates, share: float = 1.0) -> Forecast:
    """A further token, by a pass of one row, which needs such a `share` of the experts, and whose memory is shared out
    as `plan` says."""
    return _pass(plan.streamed_with(share), rates.row_seconds(plan, share), rates)


def forecast_prompt(architecture: Architecture, plan: Plan, tokens: int, chunk: int, rates: Rates) -> Forecast:
    """The first token after a prompt of `tokens` tokens, by passes of `chunk` rows at most.

    `plan` is that of the longest of them. The first pass finds nothing in memory and reads all weights.
    """
    passes = []
    for begin in range(0, tokens, chunk):
        end = min(tokens, begin + chunk)
        arithmetic = architecture.flops(end - begin, end) / rates.flops
        share = architecture.expert_share(end - begin)
        compute_seconds = max(arithmetic, rates.row_seconds(plan, share))
        nbytes = plan.streamed_with(share) if begin else plan.needed(share)
        passes.append(_pass(nbytes, compute_seconds, rates))
    return _in_turn(passes)


def _blend(share: float, rate: float, other: float) -> float:
    """The rate of doing `share` of something at one rate, and the rest at the other."""
    return 1 / (share / rate + (1 - share) / other)


def _pass(nbytes: int, compute_seconds: float, rates: Rates) -> Forecast:
    disk_seconds = nbytes / rates.disk_bytes
    return Forecast(1, nbytes, disk_seconds, compute_seconds, max(disk_seconds, compute_seconds))


def _in_turn(passes: list[Forecast]) -> Forecast:
    return Forecast(*(sum(figures) for figures in zip(*map(astuple, passes), strict=True)))
