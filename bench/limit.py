"""Run a command under a memory cap (page cache counted) and a disk-read cap, as on a smaller machine.

    python bench/limit.py --memory 3GiB --read 524MB -- COMMAND [ARGUMENT ...]

Works with control groups v1 and v2, as root, on Linux. The page cache is dropped first. The cap on reads holds for the
disk that holds --disk (by default the current directory). Prints the peak memory of the group when the command ends,
on standard error, or as JSON into --report; exits as the command did.

Sources: the kernel's documents on cgroup v1 (memory, blkio) and cgroup v2 (memory.max, io.max).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.plan import MIB, parse_bytes

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Report:
    """How a command ended, and the most memory that its group held, page cache counted."""

    exit_status: int
    peak_bytes: int
    oom_kills: int
    seconds: float


class GroupV1:
    """One group in each of the hierarchies memory and blkio."""

    def __init__(self, name: str) -> None:
        self._memory, self._blkio = ROOT / "memory" / name, ROOT / "blkio" / name
        self._memory.mkdir()
        self._blkio.mkdir()

    def limit(self, memory: int | None, read: int | None, device: str) -> None:
        if memory is not None:
            (self._memory / "memory.limit_in_bytes").write_text(str(memory))
        if read is not None:
            (self._blkio / "blkio.throttle.read_bps_device").write_text(f"{device} {read}")

    def enter(self) -> None:
        """Move the calling process into the group."""
        for group in (self._memory, self._blkio):
            (group / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        return int((self._memory / "memory.max_usage_in_bytes").read_text())

    def oom_kills(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")

    def remove(self) -> None:
        for group in (self._memory, self._blkio):
            _remove(group)


class GroupV2:
    """One group in the unified hierarchy."""

    def __init__(self, name: str) -> None:
        (ROOT / "cgroup.subtree_control").write_text("+memory +io")
        self._group = ROOT / name
        self._group.mkdir()

    def limit(self, memory: int | None, read: int | None, device: str) -> None:
        if memory is not None:
            (self._group / "memory.max").write_text(str(memory))
        if read is not None:
            (self._group / "io.max").write_text(f"{device} rbps={read}")

    def enter(self) -> None:
        """Move the calling process into the group."""
        (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        return int((self._group / "memory.peak").read_text())

    def oom_kills(self) -> int:
        return _field(self._group / "memory.events", "oom_kill")

    def remove(self) -> None:
        _remove(self._group)


def run_limited(command: list[str], memory: int | None, read: int | None, disk: Path) -> Report:
    """Run `command` with at most `memory` bytes and `read` bytes a second from the disk that holds `disk`."""
    name = f"penstock-{os.getpid()}"
    group = GroupV1(name) if (ROOT / "memory").is_dir() else GroupV2(name)
    try:
        group.limit(memory, read, whole_disk(disk))
        _drop_caches()
        begin = time.monotonic()
        status = subprocess.run(command, preexec_fn=group.enter, check=False).returncode
        return Report(status, group.peak_bytes(), group.oom_kills(), time.monotonic() - begin)
    finally:
        group.remove()


def whole_disk(path: Path) -> str:
    """ "MAJOR:MINOR" of the disk that holds `path`; caps are set on disks, not on partitions."""
    device = path.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    disk = entry.parent if (entry / "partition").exists() else entry
    return (disk / "dev").read_text().strip()


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _field(path: Path, name: str) -> int:
    """The number behind `name` in a file of "name number" lines; 0 where it is not there."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return next((int(value) for key, value in pairs if key == name), 0)


def _remove(group: Path, seconds: float = 5) -> None:
    """Remove a group; what is left of its processes may take a moment to go."""
    end = time.monotonic() + seconds
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=parse_bytes, help="most bytes of the group, like 3GiB")
    parser.add_argument("--read", type=parse_bytes, help="most bytes a second from the disk, like 524MB")
    parser.add_argument("--disk", type=Path, default=Path.cwd(), help="a path on the disk that --read is for")
    parser.add_argument("--report", type=Path, help="write the report there, as JSON")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    report = run_limited(args.command, args.memory, args.read, args.disk)
    if args.report:
        args.report.write_text(json.dumps(asdict(report)))
    else:
        print(
            f"peak {report.peak_bytes / MIB:.0f} MiB, {report.oom_kills} killed, {report.seconds:.1f} s",
            file=sys.stderr,
        )
    return report.exit_status if report.exit_status >= 0 else 128 - report.exit_status


if __name__ == "__main__":
    sys.exit(main())
