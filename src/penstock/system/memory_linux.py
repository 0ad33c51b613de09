"""Memory of Linux, and of other systems as far as they are alike: `machine.py` says what is asked for.

Sources: proc(5) for /proc/meminfo and /proc/self/status; mincore(2); malloc_trim(3), mallopt(3).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from penstock.system.cgroups import limited_groups

if sys.platform == "win32":
    raise ImportError("nothing here is of Windows")  # and mypy need not look for what it lacks

PROC_SELF = Path("/proc/self")
KIB = 1 << 10
MMAP_THRESHOLD_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3


def anonymous_bytes() -> int:
    """This process's own pages and the kernel's tables of them; all that is resident where the system tells no more."""
    status = _status()
    if "RssAnon" not in status:
        return int(psutil.Process().memory_info().rss)
    return status["RssAnon"] + status.get("RssShmem", 0) + status.get("VmPTE", 0)


def cached_bytes() -> int:
    """Page cache of its programs, libraries and modules: a control group counts it whole, mapped or not."""
    return _cached_bytes(_own_files()) if (PROC_SELF / "maps").exists() else 0


def peak_bytes() -> int:
    known = _status().get("VmHWM")
    return int(psutil.Process().memory_info().rss) if known is None else known


def swapped_bytes() -> int:
    return _status().get("VmSwap", 0)


def available_bytes() -> int:
    """0.85 of MemAvailable, or what its cgroup has free, if that is less."""
    available = int(psutil.virtual_memory().available * 0.85)
    return min([available, *(group.free for group in limited_groups())])


def is_low() -> bool:
    return False  # `pressure.py` looks at more than one sign


def trim_heap() -> None:
    """By glibc, where the C library is that one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_large_arrays() -> None:
    """By default glibc raises its threshold to the largest array freed so far, and keeps up to 32 MiB for the next."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, bytes; empty where there is no such file."""
    try:
        lines = (PROC_SELF / "status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) * KIB for name, value in pairs}


def _own_files() -> set[str]:
    """The files that this process has mapped, and those that its modules were loaded from."""
    mapped = {line.split(maxsplit=5)[5] for line in (PROC_SELF / "maps").read_text().splitlines() if "/" in line}
    modules = {getattr(module, "__cached__", None) for module in list(sys.modules.values())}
    return mapped | {name for name in modules if isinstance(name, str)}


def _cached_bytes(paths: Iterable[str]) -> int:
    """How much of the given files is in the page cache; what cannot be opened counts as nothing."""
    mincore = ctypes.CDLL(None).mincore
    pages = 0
    for path in paths:  # hundreds, whenever a model is opened
        with suppress(OSError, ValueError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode) and status.st_size:
                    pages += _cached_pages(descriptor, status.st_size, mincore)
            finally:
                os.close(descriptor)
    return pages * mmap.PAGESIZE


def _cached_pages(descriptor: int, nbytes: int, mincore: Callable[..., int]) -> int:
    import numpy as np  # which who only asks about this machine can do without

    with mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ) as mapping:
        content = np.frombuffer(mapping, np.uint8)
        resident = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
        told = mincore(
            ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(nbytes), ctypes.c_void_p(resident.ctypes.data)
        )
        del content
    return 0 if told else int(np.count_nonzero(resident & 1))
