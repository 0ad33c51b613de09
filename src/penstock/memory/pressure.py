"""Memory pressure from outside: when other programs need memory, resident weights are given back.

A ceiling is a promise of this process; what the machine has left may change after it was made. Four signs say so:
pages of this process are swapped out, little memory is available (to the system or to the control group), tasks
stall for memory while not much is left, or the system itself says that memory is short (macOS, Windows).

Sources: proc(5) for MemAvailable; the kernel's document on pressure stall information (PSI).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from penstock.system import machine
from penstock.system.cgroups import limited_groups

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
PSI_FILE = Path("/proc/pressure/memory")
INTERVAL_SECONDS = 0.5
CALM_SECONDS = 30.0
STALL_SHARE = 0.1
"""Of the time, tasks stalled for memory: a sign of pressure where little is left."""
GROUP_RESERVE_BYTES, MOST_GROUP_RESERVE_BYTES = 32 * MIB, 256 * MIB
"""What a control group should have free, page cache counted as free: the first where this process is alone in it, more
beside others, which may grow faster than anyone looks."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the system says at one moment; bytes, and seconds that tasks have stalled for memory since it started."""

    available: int
    reserve: int
    """How much should stay available."""
    group_free: int | None
    """What the control group above this process with the least room has left; None without a limited one."""
    group_reserve: int
    swapped: int
    stalled_seconds: float
    low: bool = False
    """Whether the system says that memory is short."""


def take_sample() -> Sample:
    """The system as it is now."""
    memory = psutil.virtual_memory()
    group = min(limited_groups(), key=lambda group: group.free, default=None)
    others = group.anonymous - machine.anonymous_bytes() if group is not None else 0
    return Sample(
        available=memory.available,
        reserve=min(memory.total // 20, 512 * MIB),
        group_free=None if group is None else group.free,
        group_reserve=min(GROUP_RESERVE_BYTES + max(0, others) // 2, MOST_GROUP_RESERVE_BYTES),
        swapped=machine.swapped_bytes(),
        stalled_seconds=_stalled_seconds(),
        low=machine.is_low(),
    )


class Relief:
    """Decides how many bytes of weights may stay resident while others need memory."""

    def __init__(self, sample: Callable[[], Sample] = take_sample, clock: Callable[[], float] = time.monotonic) -> None:
        self._sample = sample
        self._clock = clock
        self._last = sample()
        self._most_reserve = max(16 * MIB, self._last.available // 14)
        """Half of what the default ceiling leaves: what was fair at first is no pressure later."""
        self._checked = clock()
        self._pressed = float("-inf")
        self.limit: int | None = None
        """The most resident bytes; None without pressure."""

    @property
    def due(self) -> bool:
        """Whether it is time to look at the system again: every INTERVAL_SECONDS."""
        return self._clock() - self._checked >= INTERVAL_SECONDS

    def check(self, resident: int, wanted: int) -> bool:
        """Look at the system, if that is due; whether `limit` has changed.

        `resident`: bytes of weights in memory now; `wanted`: how many there may be without pressure. Under pressure
        the limit falls below the first by what is missing, by a sixteenth at least; after CALM_SECONDS without, it
        rises above it by half of what there is room for.
        """
        if not self.due:
            return False
        now = self._clock()
        before, sample = self.limit, self._sample()
        sample = replace(sample, reserve=min(sample.reserve, self._most_reserve))
        missing = _missing(self._last, sample, now - self._checked)
        if missing > 0 or sample.low:
            step = max(resident // 16, 16 * MIB)
            self.limit, self._pressed = max(0, resident - max(missing, step)), now
        elif self.limit is not None and now - self._pressed >= CALM_SECONDS:
            raised = max(self.limit, resident + _room(sample) // 2)
            self.limit = raised if raised < wanted else None
        self._last, self._checked = sample, now
        return self.limit != before


def _missing(last: Sample, now: Sample, seconds: float) -> int:
    """Bytes to give back; 0 without pressure."""
    missing = [now.reserve - now.available, now.swapped - last.swapped]
    if now.group_free is not None:
        missing.append(now.group_reserve - now.group_free)
    stalls = now.stalled_seconds - last.stalled_seconds > STALL_SHARE * seconds
    if stalls and now.available < 3 * now.reserve:
        missing.append(3 * now.reserve - now.available)
    return max(0, *missing)


def _room(now: Sample) -> int:
    """Bytes that may be taken without coming near the reserves."""
    room = [now.available - 2 * now.reserve]
    if now.group_free is not None:
        room.append(now.group_free - 2 * now.group_reserve)
    return max(0, min(room))


def _stalled_seconds() -> float:
    """How long some task has stalled for memory, in all; 0 where the kernel does not tell."""
    try:
        some = PSI_FILE.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0
