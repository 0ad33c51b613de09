"""How long a pass will take: the disk and the CPU work at the same time, so the slower of the two decides.

Pure functions of numbers: (how memory is shared out, what the machine can do) to seconds. Not in it: the few per cent
by which a pass misses the slower one's time, sampling, and what other programs take of disk and CPU.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.architectures.base import Architecture
    from penstock.memory.budget import Plan
    from penstock.stages.rates import Rates


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


def _pass(nbytes: int, compute_seconds: float, rates: Rates) -> Forecast:
    disk_seconds = nbytes / rates.disk_bytes
    return Forecast(1, nbytes, disk_seconds, compute_seconds, max(disk_seconds, compute_seconds))


def _in_turn(passes: list[Forecast]) -> Forecast:
    return Forecast(*(sum(figures) for figures in zip(*map(astuple, passes), strict=True)))
