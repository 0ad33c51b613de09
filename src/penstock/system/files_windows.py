"""Opening, locking and replacing files on Windows: `files.py` says what is asked for.

What Python opens there can be neither renamed nor deleted until it is closed, and nothing can take its place. Opened
with FILE_SHARE_DELETE it can, and a rename with POSIX semantics (Windows 10 1607, NTFS) puts a file in place of an open
one. Other file systems refuse that, and get a plain rename, which needs that nobody has the target open.

Sources: learn.microsoft.com, "CreateFileW", "FILE_RENAME_INFORMATION" (the flags), "FILE_RENAME_INFO", "LockFileEx".
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from penstock.system import kernel32
from penstock.system.kernel32 import Overlapped

_FILE_RENAME_INFO_EX = 22
_REPLACE_IF_EXISTS, _POSIX_SEMANTICS = 1, 2
_FAIL_IMMEDIATELY, _EXCLUSIVE = 1, 2
LOCK_OFFSET_HIGH = 1 << 30
"""Of the byte that is locked, times 4 GiB: past the end of every file, for what is locked nobody else can read."""
LOCK_FILE = ".lock"


class _RenameInfo(ctypes.Structure):
    """FILE_RENAME_INFO, but for the name at its end: UTF-16 without a terminator."""

    _fields_ = (("flags", ctypes.c_uint32), ("root", ctypes.c_void_p), ("name_bytes", ctypes.c_uint32))


NAME_BEGIN = _RenameInfo.name_bytes.offset + _RenameInfo.name_bytes.size


def open_movable(path: str | Path, flags: int, mode: int = 0o666) -> int:
    access = {os.O_RDONLY: kernel32.GENERIC_READ, os.O_WRONLY: kernel32.GENERIC_WRITE}.get(
        flags & (os.O_WRONLY | os.O_RDWR), kernel32.GENERIC_READ | kernel32.GENERIC_WRITE
    )
    handle = kernel32.open_handle(Path(path), access, _disposition(flags))
    return kernel32.descriptor_of(handle, flags & os.O_APPEND)


def _disposition(flags: int) -> int:
    if flags & os.O_CREAT:
        if flags & os.O_EXCL:
            return kernel32.CREATE_NEW
        return kernel32.CREATE_ALWAYS if flags & os.O_TRUNC else kernel32.OPEN_ALWAYS
    return kernel32.TRUNCATE_EXISTING if flags & os.O_TRUNC else kernel32.OPEN_EXISTING


def replace(source: Path, target: Path) -> None:
    library = kernel32.library()
    name = os.path.abspath(target).encode("utf-16-le")  # noqa: PTH100 (which does not follow links)
    head = _RenameInfo(flags=_REPLACE_IF_EXISTS | _POSIX_SEMANTICS, root=None, name_bytes=len(name))
    # The structure has at least one character of the name in it, and is not counted shorter than it is.
    info = (bytes(head)[:NAME_BEGIN] + name).ljust(ctypes.sizeof(_RenameInfo), b"\0") + b"\0\0"
    handle = kernel32.open_handle(source, kernel32.DELETE, kernel32.OPEN_EXISTING, kernel32.FILE_FLAG_BACKUP_SEMANTICS)
    try:
        if library.SetFileInformationByHandle(handle, _FILE_RENAME_INFO_EX, info, len(info)):
            return
        error = kernel32.failure(target)
    finally:
        library.CloseHandle(handle)
    if error.errno != errno.EINVAL:
        raise error
    source.replace(target)


def lock(descriptor: int, wait: bool = False) -> bool:
    at, flags = Overlapped(offset_high=LOCK_OFFSET_HIGH), _EXCLUSIVE | (0 if wait else _FAIL_IMMEDIATELY)
    if kernel32.library().LockFileEx(kernel32.handle_of(descriptor), flags, 0, 1, 0, ctypes.byref(at)):
        return True
    if kernel32.last_error() in (kernel32.ERROR_LOCK_VIOLATION, kernel32.ERROR_IO_PENDING):
        return False
    raise kernel32.failure()


def lock_holder(folder: Path) -> int:
    return open_movable(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
