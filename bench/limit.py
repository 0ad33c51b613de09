"""Run a command under a memory cap (page cache counted) and a disk-read cap, as on a smaller machine.

    python bench/limit.py --memory 3GiB --read 524MB -- COMMAND [ARGUMENT ...]

Works with control groups v1 and v2, as root, on Linux. The page cache is dropped first, and the command gets no swap.
The cap on reads holds for the disk that holds --disk (by default the current directory). Prints the peak memory of the
group when the command ends, on standard error, or as JSON into --report; exits as the command did.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from control_group import ROOT, check_system, new_group

from penstock.errors import PenstockError, UsageError
from penstock.system.sizes import MIB, parse_bytes

SYS = Path("/sys")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """Caps of a group: bytes of memory, bytes a second read from the disk "MAJOR:MINOR"; None is no cap."""

    memory: int | None
    read: int | None
    device: str

    def __post_init__(self) -> None:
        # The kernel takes a read cap of 0 for none.
        if 0 in (self.memory, self.read):
            raise UsageError("A cap of 0 bytes cannot be meant.", "Leave the option out for no cap.")


@dataclass(frozen=True)
class Report:
    """How a command ended (-N: by signal N), and the most memory that its group held, page cache counted.

    `peak_bytes` is None where the kernel does not keep it (control groups v2 before Linux 5.19).
    """

    exit_status: int
    peak_bytes: int | None
    oom_kills: int
    seconds: float
    timed_out: bool = False


def run_limited(
    command: list[str],
    limits: Limits,
    *,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    timeout: float | None = None,
    root: Path = ROOT,
) -> Report:
    """Run `command` in a group of its own under `limits`; after `timeout` seconds it is killed.

    Raises UsageError where the limits cannot be set or the command cannot be started.
    """
    group = new_group(root)
    try:
        group.limit(limits.memory, limits.read, limits.device)
        drop_caches()
        begin = time.monotonic()
        process = _start(command, group.enter, stdout, stderr)
        status, timed_out = _wait(process, timeout)
        return Report(status, group.peak_bytes(), group.oom_kills(), time.monotonic() - begin, timed_out)
    finally:
        group.remove()


def _start(
    command: list[str], enter: Callable[[], None], stdout: IO[bytes] | None, stderr: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a helper that is killed takes the command with it
        enter()

    try:
        return subprocess.Popen(command, preexec_fn=in_child, stdout=stdout, stderr=stderr)
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}.", "Check the command's name.") from error
    except subprocess.SubprocessError as error:
        raise UsageError(
            "The command could not be moved into its control group.", "Check that nothing else manages the groups."
        ) from error


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> tuple[int, bool]:
    """Exit status, and whether it had to be killed for the time."""
    try:
        return process.wait(timeout), False
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL, True
    finally:
        process.kill()
        process.wait()


def whole_disk(path: Path, sys_dir: Path = SYS) -> str:
    """ "MAJOR:MINOR" of the disk that holds `path`, or that `path` is; caps are set on disks, not on partitions.

    Raises UsageError for file systems that are not on one block device (Btrfs, ZFS, overlays, memory, network).
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.", "Name a path on the disk to cap.") from error
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    entry = (sys_dir / "dev/block" / number).resolve()
    if not entry.exists():
        raise UsageError(
            f"The disk that holds {path} is unknown: its file system ({number}) is not on one block device.",
            "Name the disk itself, like --disk /dev/nvme0n1.",
        )
    disk = entry.parent if (entry / "partition").exists() else entry
    return (disk / "dev").read_text().strip()


def drop_caches() -> None:
    """Write dirty pages to the disk and forget the page cache. Raises UsageError where it is not allowed."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise UsageError(
            f"The page cache cannot be dropped: {DROP_CACHES}: {error.strerror}.",
            "Run it as root, outside of containers that mount /proc/sys read-only.",
        ) from error


def exit_on_signals() -> None:
    """Let SIGTERM and, where there is one, SIGHUP unwind the stack, so that groups and copies are removed."""
    for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def _summary(report: Report) -> str:
    peak = f"peak {report.peak_bytes / MIB:.0f} MiB" if report.peak_bytes is not None else "peak unknown"
    return f"{peak}, {report.oom_kills} killed, {report.seconds:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", help="most bytes of the group, like 3GiB")
    parser.add_argument("--read", help="most bytes a second from the disk, like 524MB")
    parser.add_argument("--disk", type=Path, default=Path.cwd(), help="a path on the disk that --read is for")
    parser.add_argument("--report", type=Path, help="write the report there, as JSON")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    exit_on_signals()
    try:
        memory, read = (None if text is None else parse_bytes(text) for text in (args.memory, args.read))
        check_system()
        report = run_limited(args.command, Limits(memory, read, whole_disk(args.disk) if read is not None else ""))
    except PenstockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.report:
        args.report.write_text(json.dumps(asdict(report)))
    else:
        print(_summary(report), file=sys.stderr)
    return report.exit_status if report.exit_status >= 0 else 128 - report.exit_status


if __name__ == "__main__":
    sys.exit(main())
