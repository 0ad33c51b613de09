"""Windows' files, locks and figures of memory as far as Penstock asks for them, on the files of this system.

What is modelled, and where it is said (learn.microsoft.com):

- without buffering, offset, size and address of a read are multiples of the sector, else it fails with 87 ("File
  Buffering"); reads that pass the end of the file give what there is; those that begin there fail with 38, at once or
  when their result is asked for ("Testing for the End of a File");
- with FILE_FLAG_OVERLAPPED a read may be under way when ReadFile returns: 0, and 997. Its result is waited for by an
  event that no other read has ("Synchronous and Asynchronous I/O");
- a handle shares what it says, and is refused with 32 where an earlier one does not share what it wants ("Creating and
  Opening Files");
- a rename with POSIX semantics replaces an open file that is shared for deleting; without them the target must not be
  open (FILE_RENAME_INFORMATION); what knows no such rename says 87;
- a locked range is another handle's until the handle with the lock is closed; whoever does not wait gets 33
  (LockFileEx).

Functions are called through ctypes with the types that `kernel32.py` declares. What is wrong about a call is in
`misuse`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.system import kernel32

SECTOR = 4096
FIRST_HANDLE = 0x7_0000_0004
"""Longer than 32 bits, as pointers are."""
READ, WRITE, DELETE = 1, 2, 4
WANTS = {kernel32.GENERIC_READ: READ, kernel32.GENERIC_WRITE: WRITE, kernel32.DELETE: DELETE}


@dataclass
class Handle:
    path: str
    descriptor: int
    flags: int
    wants: int
    shares: int


@dataclass
class Pending:
    handle: int
    buffer: int
    nbytes: int
    offset: int
    event: int
    cancelled: bool = False


@dataclass
class FakeKernel32:
    """To be put in place by `install`."""

    at_once: bool = False
    """Reads end before ReadFile returns, as those from the cache may."""
    end_at_once: bool = True
    """ReadFile says so itself where the file ends before the read begins."""
    refuses_direct: str = ""
    """"open" or "read": when a file system without unbuffered reads says so, by 87."""
    posix_renames: bool = True
    short: int = 0
    """The most bytes of a read, where that is not 0."""
    fails: dict[int, int] = field(default_factory=dict)
    """Error codes of reads at offsets."""
    memory: dict[str, bytes] = field(default_factory=dict)
    """What K32GetProcessMemoryInfo and GlobalMemoryStatusEx write; nothing: they fail, with 5."""
    low: int | None = 0
    """What QueryMemoryResourceNotification tells; None: there are no such objects."""
    handles: dict[int, Handle] = field(default_factory=dict)
    events: set[int] = field(default_factory=set)
    pending: dict[int, Pending] = field(default_factory=dict)
    locks: dict[tuple[int, int, int], int] = field(default_factory=dict)
    misuse: list[str] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = FIRST_HANDLE
        self._mutex = threading.RLock()
        self._unlocked = threading.Condition(self._mutex)
        self._errors = threading.local()
        for name, (returned, taken) in kernel32.FUNCTIONS.items():
            function = getattr(self, f"_{name}", None)
            if function is not None:
                setattr(self, name, ctypes.CFUNCTYPE(returned, *taken)(self._guarded(name, function)))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel32, "library", lambda: self)
        monkeypatch.setattr(kernel32, "last_error", lambda: getattr(self._errors, "code", 0))
        monkeypatch.setattr(kernel32, "descriptor_of", self.descriptor_of)
        monkeypatch.setattr(kernel32, "handle_of", self.handle_of)

    def descriptor_of(self, handle: int, flags: int) -> int:
        """The CRT's descriptors are the files' own here."""
        if flags & ~os.O_APPEND:
            self.misuse.append(f"descriptor of {flags:x}")
        return self.handles[handle].descriptor

    def handle_of(self, descriptor: int) -> int:
        return next(handle for handle, file in self.handles.items() if file.descriptor == descriptor)

    def close_descriptor(self, descriptor: int) -> None:
        """What os.close does with the handle beneath."""
        self._CloseHandle(self.handle_of(descriptor))

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            try:
                return function(*given)
            except Exception as error:  # which ctypes would only print
                self.misuse.append(f"{name}{given}: {error!r}")
                return 0

        return call

    def _fail(self, code: int, result: int = 0) -> int:
        self._errors.code = code
        return result

    def _new(self) -> int:
        with self._mutex:
            self._next += 4
            return self._next

    def _CreateFileW(  # noqa: N802
        self, name: str, access: int, share: int, security: None, disposition: int, flags: int, template: None
    ) -> int:
        wants = sum(bit for right, bit in WANTS.items() if access & right)
        path, invalid = os.path.abspath(name), kernel32.INVALID_HANDLE or 0  # noqa: PTH100
        if not wants or disposition not in range(1, 6):
            self.misuse.append(f"CreateFileW access {access:x}, disposition {disposition}")
        exists = Path(path).exists()
        if exists and disposition == kernel32.CREATE_NEW:
            return self._fail(80, invalid)
        if not exists and disposition in (kernel32.OPEN_EXISTING, kernel32.TRUNCATE_EXISTING):
            return self._fail(2 if Path(path).parent.exists() else 3, invalid)
        if Path(path).is_dir() and not flags & kernel32.FILE_FLAG_BACKUP_SEMANTICS:
            return self._fail(5, invalid)
        if self.refuses_direct == "open" and flags & kernel32.FILE_FLAG_NO_BUFFERING:
            return self._fail(87, invalid)
        with self._mutex:
            others = [file for file in self.handles.values() if exists and self._is_at(file, path)]
            if any(wants & ~file.shares or file.wants & ~share for file in others):
                return self._fail(32, invalid)
            emptied = disposition in (kernel32.CREATE_ALWAYS, kernel32.TRUNCATE_EXISTING)
            how = os.O_RDWR if wants & WRITE else os.O_RDONLY
            made = 0 if disposition == kernel32.OPEN_EXISTING else os.O_CREAT
            descriptor = os.open(path, how | made | (os.O_TRUNC if emptied else 0))
            handle = self._new()
            self.handles[handle] = Handle(path, descriptor, flags, wants, share)
            return handle

    def _is_at(self, file: Handle, path: str) -> bool:
        return os.path.samestat(os.fstat(file.descriptor), os.stat(path))  # noqa: PTH116

    def _CreateEventW(self, security: None, manual: int, signalled: int, name: None) -> int:  # noqa: N802
        event = self._new()
        self.events.add(event)
        return event

    def _CloseHandle(self, handle: int) -> int:  # noqa: N802
        with self._unlocked:
            if handle in self.events:
                if any(read.event == handle for read in self.pending.values()):
                    self.misuse.append("an event was closed before its read had ended")
                self.events.remove(handle)
                return 1
            if any(read.handle == handle for read in self.pending.values()):
                self.misuse.append("a file was closed before a read of it had ended")
            file = self.handles.pop(handle)
            os.close(file.descriptor)
            self.locks = {range_: owner for range_, owner in self.locks.items() if owner != handle}
            self._unlocked.notify_all()
        return 1

    def _ReadFile(self, handle: int, buffer: int, nbytes: int, count: Any, overlapped: Any) -> int:  # noqa: N802
        file, at = self.handles[handle], overlapped.contents
        read = Pending(handle, buffer, nbytes, at.offset_high << 32 | at.offset, at.event)
        self.reads.append((read.offset, nbytes))
        if count or not file.flags & kernel32.FILE_FLAG_OVERLAPPED or not file.wants & READ:
            self.misuse.append("a read of a handle that is not overlapped, or with a count that says nothing")
        if read.event not in self.events or any(other.event == read.event for other in [*self.pending.values()]):
            self.misuse.append("a read without an event of its own")
        if file.flags & kernel32.FILE_FLAG_NO_BUFFERING and (
            self.refuses_direct == "read" or read.offset % SECTOR or nbytes % SECTOR or buffer % SECTOR
        ):
            return self._fail(87)
        if read.offset >= os.fstat(file.descriptor).st_size and self.end_at_once:
            return self._fail(38)
        self.pending[ctypes.addressof(at)] = read
        return 1 if self.at_once else self._fail(997)

    def _GetOverlappedResult(self, handle: int, overlapped: Any, count: Any, wait: int) -> int:  # noqa: N802
        read = self.pending.pop(ctypes.addressof(overlapped.contents), None)
        if read is None:
            return self._fail(6)
        if not wait or read.handle != handle:
            self.misuse.append("the result of another read, or one that is not there yet")
        if read.cancelled:
            return self._fail(995)
        if read.offset in self.fails:
            return self._fail(self.fails[read.offset])
        data = os.pread(self.handles[handle].descriptor, min(read.nbytes, self.short or read.nbytes), read.offset)
        if not data:
            return self._fail(38)
        ctypes.memmove(read.buffer, data, len(data))
        count.contents.value = len(data)
        return 1

    def _CancelIoEx(self, handle: int, overlapped: Any) -> int:  # noqa: N802
        read = self.pending.get(ctypes.addressof(overlapped.contents))
        if read is None:
            return self._fail(1168)
        read.cancelled = True
        return 1

    def _LockFileEx(  # noqa: N802
        self, handle: int, flags: int, reserved: int, low: int, high: int, overlapped: Any
    ) -> int:
        at = overlapped.contents
        inode = os.fstat(self.handles[handle].descriptor).st_ino
        begin, exclusive, waits = at.offset_high << 32 | at.offset, flags & 2, not flags & 1
        if reserved or (low, high) != (1, 0) or not exclusive or begin < 1 << 60:
            self.misuse.append(f"LockFileEx {flags}, {low}, {high} at {begin}")
        with self._unlocked:
            while self.locks.get((inode, begin, low), handle) != handle:
                if not waits:
                    return self._fail(33)
                self._unlocked.wait()
            self.locks[inode, begin, low] = handle
        return 1

    def _SetFileInformationByHandle(self, handle: int, kind: int, info: int, nbytes: int) -> int:  # noqa: N802
        file, raw = self.handles[handle], ctypes.string_at(info, nbytes)
        flags, name_bytes = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[16:20], "little")
        if kind != 22 or nbytes < max(24, 20 + name_bytes) or not file.wants & DELETE or any(raw[8:16]):
            self.misuse.append(f"SetFileInformationByHandle {kind} {raw!r}")
        if not self.posix_renames:
            return self._fail(87)
        target = raw[20 : 20 + name_bytes].decode("utf-16-le")
        if flags != 3 or not os.path.isabs(target):  # noqa: PTH117
            self.misuse.append(f"a rename with {flags} to {target}")
        if Path(target).is_dir():
            return self._fail(5)
        with self._mutex:
            open_there = [
                other for other in self.handles.values() if Path(target).exists() and self._is_at(other, target)
            ]
            if not all(other.shares & DELETE for other in open_there):
                return self._fail(5)
            Path(file.path).replace(target)
        return 1

    def _GetCurrentProcess(self) -> int:  # noqa: N802
        return kernel32.INVALID_HANDLE or 0  # a pseudo handle: -1

    def _K32GetProcessMemoryInfo(self, process: int, counters: Any, nbytes: int) -> int:  # noqa: N802
        known = self.memory.get("process")
        if process != kernel32.INVALID_HANDLE or counters.contents.size != nbytes or nbytes != 80:
            self.misuse.append(f"K32GetProcessMemoryInfo {process}, {nbytes}")
        if known is None:
            return self._fail(5)
        ctypes.memmove(counters, known, 80)
        return 1

    def _GlobalMemoryStatusEx(self, status: Any) -> int:  # noqa: N802
        known = self.memory.get("system")
        if status.contents.size != 64:  # "You must set this member before calling"
            return self._fail(87)
        if known is None:
            return self._fail(5)
        ctypes.memmove(status, known, 64)
        return 1

    def _CreateMemoryResourceNotification(self, kind: int) -> int:  # noqa: N802
        if kind != 0:
            self.misuse.append("not the notification of low memory")
        return self._fail(8) if self.low is None else self._new()

    def _QueryMemoryResourceNotification(self, handle: int, state: Any) -> int:  # noqa: N802
        state.contents.value = self.low or 0
        return 1
