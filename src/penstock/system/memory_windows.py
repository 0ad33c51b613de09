"""Memory of Windows: `machine.py` says what is asked for.

A process is charged what it has *committed*: its private pages, in memory or in the page file. The system gives out no
more than memory and page file together, and an allocation past that fails.

Sources: learn.microsoft.com, "PROCESS_MEMORY_COUNTERS_EX", "MEMORYSTATUSEX", "CreateMemoryResourceNotification".
"""

from __future__ import annotations

import ctypes
from functools import cache

from penstock.system import kernel32
from penstock.system.kernel32 import MemoryCounters, MemoryStatus

_LOW_MEMORY = 0


def anonymous_bytes() -> int:
    """PrivateUsage. Raises OSError."""
    return int(_counters().private)


def cached_bytes() -> int:
    return 0


def peak_bytes() -> int:
    return int(_counters().peak_working_set)


def swapped_bytes() -> int:
    return 0  # Windows does not tell


def available_bytes() -> int:
    """0.85 of what is available of memory, and of what may still be committed, if that is less. Raises OSError."""
    status = MemoryStatus(size=ctypes.sizeof(MemoryStatus))
    if not kernel32.library().GlobalMemoryStatusEx(ctypes.byref(status)):
        raise kernel32.failure()
    return int(min(status.available, status.may_commit) * 0.85)


def is_low() -> bool:
    notification, low = _notification(), ctypes.c_int32()
    told = notification and kernel32.library().QueryMemoryResourceNotification(notification, ctypes.byref(low))
    return bool(told) and low.value != 0


def trim_heap() -> None:
    pass  # the heap does so by itself


def return_large_arrays() -> None:
    pass  # they do


def _counters() -> MemoryCounters:
    counters, library = MemoryCounters(size=ctypes.sizeof(MemoryCounters)), kernel32.library()
    if not library.K32GetProcessMemoryInfo(library.GetCurrentProcess(), ctypes.byref(counters), counters.size):
        raise kernel32.failure()
    return counters


@cache
def _notification() -> int | None:
    """The object that tells; None where the system gives none."""
    handle: int | None = kernel32.library().CreateMemoryResourceNotification(_LOW_MEMORY)
    return handle
