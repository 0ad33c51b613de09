"""The memory of the control groups that hold this process.

Sources: the kernel's cgroup-v1 and cgroup-v2 documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Group:
    """A memory cgroup with a limit, bytes."""

    free: int
    """What it may still take, page cache counted as free."""
    anonymous: int
    """What its processes hold of their own."""


def limited_groups(root: Path = CGROUP_ROOT, membership: Path = MEMBERSHIP) -> list[Group]:
    """Every limited memory cgroup above this process, the nearest first."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    groups = []
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
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None and limit < UNLIMITED:
                cached, anonymous = _contents(group)
                groups.append(Group(max(0, limit - used + cached), anonymous))
            group = group.parent
    return groups


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or if it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _contents(group: Path) -> tuple[int, int]:
    """Bytes of reclaimable page cache, and of processes' own memory, charged to a cgroup."""
    try:
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return 0, 0
    if "total_cache" in stat:
        return stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0), stat.get("total_rss", 0)
    return stat.get("inactive_file", 0) + stat.get("active_file", 0), stat.get("anon", 0)
