"""What is used of Windows' kernel32.dll, with its types.

Sources: learn.microsoft.com, "Win32 API": the pages of these functions and structures; "System Error Codes".
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_size_t, c_uint32, c_uint64, c_void_p, c_wchar_p
from functools import cache
from pathlib import Path
from typing import Any

GENERIC_READ, GENERIC_WRITE, DELETE = 0x8000_0000, 0x4000_0000, 0x0001_0000
FILE_SHARE_ALL = 1 | 2 | 4
"""Reading, writing and deleting, as files are shared on all other systems."""
CREATE_NEW, CREATE_ALWAYS, OPEN_EXISTING, OPEN_ALWAYS, TRUNCATE_EXISTING = range(1, 6)
FILE_FLAG_OVERLAPPED, FILE_FLAG_NO_BUFFERING, FILE_FLAG_BACKUP_SEMANTICS = 0x4000_0000, 0x2000_0000, 0x0200_0000
ERROR_HANDLE_EOF, ERROR_LOCK_VIOLATION, ERROR_IO_PENDING = 38, 33, 997
INVALID_HANDLE = c_void_p(-1).value

_ERRNO = {
    1: errno.EINVAL,  # no such function
    2: errno.ENOENT,  # the file
    3: errno.ENOENT,  # its folder
    4: errno.EMFILE,
    5: errno.EACCES,
    8: errno.ENOMEM,
    19: errno.EACCES,  # protected from writing
    32: errno.EACCES,  # shared otherwise
    33: errno.EACCES,  # locked
    50: errno.EINVAL,  # not supported
    80: errno.EEXIST,
    87: errno.EINVAL,
    112: errno.ENOSPC,
    123: errno.ENOENT,  # no name that a file may have
    183: errno.EEXIST,
    1450: errno.ENOMEM,
}
"""Python's own table has EINVAL for all that it does not know, a failing disk too, and here that means something."""


class Overlapped(ctypes.Structure):
    """OVERLAPPED: where a read or a lock begins, and the event of its end."""

    _fields_ = (
        ("internal", c_size_t),
        ("internal_high", c_size_t),
        ("offset", c_uint32),
        ("offset_high", c_uint32),
        ("event", c_void_p),
    )


class MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS_EX."""

    _fields_ = (
        ("size", c_uint32),
        ("page_faults", c_uint32),
        ("peak_working_set", c_size_t),
        ("working_set", c_size_t),
        ("pools", c_size_t * 4),
        ("pagefile", c_size_t),
        ("peak_pagefile", c_size_t),
        ("private", c_size_t),
    )


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("size", c_uint32),
        ("load", c_uint32),
        ("total", c_uint64),
        ("available", c_uint64),
        ("most_committed", c_uint64),
        ("may_commit", c_uint64),
        ("addresses", c_uint64 * 3),
    )


FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {
    "CancelIoEx": (c_int32, (c_void_p, POINTER(Overlapped))),
    "CloseHandle": (c_int32, (c_void_p,)),
    "CreateEventW": (c_void_p, (c_void_p, c_int32, c_int32, c_wchar_p)),
    "CreateFileW": (c_void_p, (c_wchar_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32, c_void_p)),
    "CreateMemoryResourceNotification": (c_void_p, (c_int32,)),
    "GetCurrentProcess": (c_void_p, ()),
    "GetOverlappedResult": (c_int32, (c_void_p, POINTER(Overlapped), POINTER(c_uint32), c_int32)),
    "GlobalMemoryStatusEx": (c_int32, (POINTER(MemoryStatus),)),
    "K32GetProcessMemoryInfo": (c_int32, (c_void_p, POINTER(MemoryCounters), c_uint32)),
    "LockFileEx": (c_int32, (c_void_p, c_uint32, c_uint32, c_uint32, c_uint32, POINTER(Overlapped))),
    "QueryMemoryResourceNotification": (c_int32, (c_void_p, POINTER(c_int32))),
    "ReadFile": (c_int32, (c_void_p, c_void_p, c_uint32, POINTER(c_uint32), POINTER(Overlapped))),
    "SetFileInformationByHandle": (c_int32, (c_void_p, c_int32, c_void_p, c_uint32)),
}
"""What they return and take. BOOL is an int, DWORD 32 bits, HANDLE a pointer."""


@cache
def library() -> Any:
    """The functions of kernel32.dll. ctypes lets go of the interpreter lock while one runs."""
    if sys.platform != "win32":
        raise OSError("kernel32.dll is of Windows")
    found = ctypes.WinDLL("kernel32", use_last_error=True)
    for name, (returned, taken) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = returned, taken
    return found


def last_error() -> int:
    """The code of what the last call in this thread failed for."""
    if sys.platform != "win32":
        return 0
    return ctypes.get_last_error()


def failure(path: Path | None = None) -> OSError:
    """What the last call failed for; EIO where POSIX has no name for it."""
    code = last_error()
    return OSError(_ERRNO.get(code, errno.EIO), _text(code), *(() if path is None else (os.fspath(path),)))


def _text(code: int) -> str:
    if sys.platform != "win32":
        return f"error {code}"
    return ctypes.FormatError(code)


def open_handle(path: Path, access: int, disposition: int, flags: int = 0) -> int:
    """The handle of a file that others may meanwhile read, write, rename and delete. Raises OSError."""
    handle = library().CreateFileW(os.fspath(path), access, FILE_SHARE_ALL, None, disposition, flags, None)
    if handle is None or handle == INVALID_HANDLE:
        raise failure(path)
    return int(handle)


def handle_of(descriptor: int) -> int:
    """The handle under one of Python's descriptors."""
    if sys.platform != "win32":
        raise OSError("only Windows has handles")
    import msvcrt

    return msvcrt.get_osfhandle(descriptor)


def descriptor_of(handle: int, flags: int) -> int:
    """A descriptor for Python that owns a handle. Raises OSError."""
    if sys.platform != "win32":
        raise OSError("only Windows has handles")
    import msvcrt

    return msvcrt.open_osfhandle(handle, flags)
