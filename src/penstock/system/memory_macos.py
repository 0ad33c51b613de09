"""Memory of macOS: `machine.py` says what is asked for.

A process is charged its *physical footprint*: its own pages, whether in memory, compressed or swapped out, and no clean
pages of files. Activity Monitor shows it, and the kernel goes by it.

Sources: xnu, bsd/sys/resource.h (rusage_info_v0), libsyscall/wrappers/libproc/libproc.h (proc_pid_rusage),
bsd/sys/sysctl.h (xsw_usage), bsd/kern/kern_memorystatus_notify.c (kern.memorystatus_vm_pressure_level); libmalloc,
include/malloc/malloc.h (malloc_zone_pressure_relief).
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from functools import cache
from typing import Any

import psutil  # type: ignore[import-untyped]

if sys.platform == "win32":
    raise ImportError("nothing here is of Windows")  # says to mypy what the import of resource says to Python

RUSAGE_INFO_V0 = 0
NORMAL_PRESSURE = 1
"""Of the levels; 2 is a warning, 4 is critical."""


class RusageInfo(ctypes.Structure):
    """rusage_info_v0."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("wakeups", ctypes.c_uint64 * 2),
        ("page_ins", ctypes.c_uint64),
        ("wired", ctypes.c_uint64),
        ("resident", ctypes.c_uint64),
        ("physical_footprint", ctypes.c_uint64),
        ("start_and_exit", ctypes.c_uint64 * 2),
    )


class SwapUsage(ctypes.Structure):
    """xsw_usage."""

    _fields_ = (
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("page_size", ctypes.c_uint32),
        ("encrypted", ctypes.c_int32),
    )


def anonymous_bytes() -> int:
    """The physical footprint, or all that is resident where the kernel does not tell it."""
    usage = RusageInfo()
    if _libc().proc_pid_rusage(os.getpid(), RUSAGE_INFO_V0, ctypes.byref(usage)):
        return int(psutil.Process().memory_info().rss)
    return int(usage.physical_footprint)


def cached_bytes() -> int:
    return 0


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes here


def swapped_bytes() -> int:
    """Of all processes: macOS does not tell whose."""
    usage = SwapUsage()
    return int(usage.used) if _sysctl("vm.swapusage", usage) else 0


def available_bytes() -> int:
    """0.85 of what is free or soon would be."""
    return int(psutil.virtual_memory().available * 0.85)


def is_low() -> bool:
    level = ctypes.c_int32()
    return _sysctl("kern.memorystatus_vm_pressure_level", level) and level.value > NORMAL_PRESSURE


def trim_heap() -> None:
    _libc().malloc_zone_pressure_relief(None, ctypes.c_size_t(0))


def return_large_arrays() -> None:
    pass  # they do


def _sysctl(name: str, value: ctypes.Structure | ctypes.c_int32) -> bool:
    """Whether the kernel has a value of that name and size, which is put into `value`."""
    nbytes = ctypes.c_size_t(ctypes.sizeof(value))
    told = _libc().sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(nbytes), None, ctypes.c_size_t(0))
    return told == 0 and nbytes.value == ctypes.sizeof(value)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
