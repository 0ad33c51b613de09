"""Linux control groups, v1 and v2, as far as bench/limit.py needs them: one group with caps, its peak, its end.

A group is named penstock-PID after the process that made it. One that a killed process left behind is removed by the
next, once it is empty.

Sources: the kernel's Documentation/admin-guide/cgroup-v1 (memory, blkio-controller) and cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from penstock.errors import UsageError

ROOT = Path("/sys/fs/cgroup")
PREFIX = "penstock-"
CONTAINER = "Run it outside of the container, or in one started with --privileged --cgroupns=host."


class Group(Protocol):
    """A new, empty group."""

    def limit(self, memory: int | None, read: int | None, device: str) -> None:
        """Cap memory, bytes, page cache counted and swap ruled out, and reads from `device`, bytes a second."""

    def enter(self) -> None:
        """Move the calling process into the group."""

    def peak_bytes(self) -> int | None:
        """Most memory that the group has held; None where the kernel does not keep it."""

    def oom_kills(self) -> int:
        """Processes of the group killed for memory."""

    def remove(self) -> None:
        """Kill what is left in the group, and remove it."""


def check_system() -> None:
    """Raises UsageError where there are no control groups."""
    if sys.platform != "linux":
        raise UsageError(
            f"Caps on memory and reads need Linux's control groups; this is {sys.platform}.",
            "Run the command without bench/limit.py.",
        )


def new_group(root: Path = ROOT) -> Group:
    """A group of the version that is mounted at `root`. Raises UsageError where there can be none."""
    check_system()
    if os.geteuid() != 0:
        raise UsageError("Only root may make control groups.", "Run it with sudo.")
    name = f"{PREFIX}{os.getpid()}"
    if all((root / controller / "cgroup.procs").exists() for controller in GroupV1.CONTROLLERS):
        return GroupV1(name, root)
    if (root / "cgroup.controllers").exists():
        return GroupV2(name, root)
    raise UsageError(
        f"No control groups with the controllers memory and blkio (v1), or of v2, are mounted at {root}.",
        f"Mount them: mount -t cgroup2 none {root}.",
    )


class GroupV1:
    """One group in each of the hierarchies memory and blkio."""

    CONTROLLERS = ("memory", "blkio")

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self._memory, self._blkio = (root / controller / name for controller in self.CONTROLLERS)
        _make(self._memory.parent, name)
        try:
            _make(self._blkio.parent, name)
        except UsageError:
            self._memory.rmdir()
            raise

    def limit(self, memory: int | None, read: int | None, device: str) -> None:
        if memory is not None:
            _write(self._memory / "memory.limit_in_bytes", str(memory))
            # Memory and swap together, which may not be less than memory alone; absent where swap is not counted.
            if (self._memory / "memory.memsw.limit_in_bytes").exists():
                _write(self._memory / "memory.memsw.limit_in_bytes", str(memory))
            elif (self._memory / "memory.swappiness").exists():
                _write(self._memory / "memory.swappiness", "0")
        if read is not None:
            _write(self._blkio / "blkio.throttle.read_bps_device", f"{device} {read}")

    def enter(self) -> None:
        for group in (self._memory, self._blkio):
            _enter(group)

    def peak_bytes(self) -> int | None:
        return int((self._memory / "memory.max_usage_in_bytes").read_text())

    def oom_kills(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")

    def remove(self) -> None:
        for group in (self._memory, self._blkio):
            _kill(group)
            _remove(group)


class GroupV2:
    """One group in the unified hierarchy, right below its root, which alone may hold processes beside children."""

    CONTROLLERS = ("memory", "io")

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self._enable(root)
        _make(root, name)
        self._group = root / name

    def _enable(self, root: Path) -> None:
        """Let the children of `root` be controlled. Raises UsageError where they cannot be."""
        for controller in self.CONTROLLERS:
            if controller not in (root / "cgroup.controllers").read_text().split():
                raise UsageError(f"Control groups v2 at {root} lack the controller {controller}.", CONTAINER)
        enabled = (root / "cgroup.subtree_control").read_text().split()
        missing = [controller for controller in self.CONTROLLERS if controller not in enabled]
        if not missing:
            return
        try:
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in missing))
        except OSError as error:
            if error.errno == errno.EBUSY:  # "no internal processes": true of a container's root, not of the real one
                raise UsageError(
                    f"{root} is not the real root and holds processes, so v2 gives its children no limits.", CONTAINER
                ) from error
            raise _refused(root / "cgroup.subtree_control", error) from error

    def limit(self, memory: int | None, read: int | None, device: str) -> None:
        if memory is not None:
            _write(self._group / "memory.max", str(memory))
            if (self._group / "memory.swap.max").exists():  # absent in kernels without swap
                _write(self._group / "memory.swap.max", "0")
        if read is not None:
            _write(self._group / "io.max", f"{device} rbps={read}")

    def enter(self) -> None:
        _enter(self._group)

    def peak_bytes(self) -> int | None:
        try:
            return int((self._group / "memory.peak").read_text())  # since Linux 5.19
        except FileNotFoundError:
            return None

    def oom_kills(self) -> int:
        return _field(self._group / "memory.events", "oom_kill")

    def remove(self) -> None:
        if (self._group / "cgroup.kill").exists():  # since Linux 5.14
            _write(self._group / "cgroup.kill", "1")
        else:
            _kill(self._group)
        _remove(self._group)


def _make(parent: Path, name: str) -> None:
    """Make the group `name`, after removing those that dead processes left behind."""
    for stale in parent.glob(f"{PREFIX}*"):
        if stale.name == name or not Path("/proc", stale.name.removeprefix(PREFIX)).exists():
            with suppress(OSError):  # still in use, maybe by a process of another container
                stale.rmdir()
    try:
        (parent / name).mkdir()
    except FileExistsError as error:
        raise UsageError(f"The control group {parent / name} is in use already.", "End its processes first.") from error
    except OSError as error:
        raise _refused(parent / name, error) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"The kernel refused {text!r} for {path}: {error.strerror}.", CONTAINER) from error


def _refused(path: Path, error: OSError) -> UsageError:
    return UsageError(f"The kernel refused {path}: {error.strerror}.", CONTAINER)


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _field(path: Path, name: str) -> int:
    """The number behind `name` in a file of "name number" lines; 0 where it is not there."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return next((int(value) for key, value in pairs if key == name), 0)


def _kill(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


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
