"""What this machine and this process have of memory.

Sources: proc(5) for /proc/meminfo and /proc/self/status; the kernel's cgroup-v1 and cgroup-v2 documents.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]

CGROUP_ROOT = Path("/sys/fs/cgroup")


def process_bytes() -> int:
    """Resident memory of this process, bytes."""
    return int(psutil.Process().memory_info().rss)


def trim_heap() -> None:
    """Give freed heap pages back to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def available_bytes() -> int:
    """What this process may still take: 0.85 of MemAvailable, or what its cgroup has free, if that is less."""
    available = int(psutil.virtual_memory().available * 0.85)
    return min([available, *_cgroup_free()])


def _cgroup_free(root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Free bytes of each limited memory cgroup above this process, page cache counted as free."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        elif not controllers:
            names, base = ("memory.max", "memory.current"), root
        else:
            continue
        group = base / path.lstrip("/")
        while group.is_relative_to(base):
            limit, used, cached = _number(group / names[0]), _number(group / names[1]), _page_cache(group)
            if limit is not None and used is not None and limit < 1 << 60:
                free.append(max(0, limit - used + cached))
            group = group.parent
    return free


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or if it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _page_cache(group: Path) -> int:
    """Bytes of reclaimable page cache charged to a cgroup."""
    try:
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return 0
    keys = ("total_inactive_file", "total_active_file") if "total_cache" in stat else ("inactive_file", "active_file")
    return sum(stat.get(key, 0) for key in keys)
