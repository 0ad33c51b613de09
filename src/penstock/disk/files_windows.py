"""Reading past the file cache of Windows: `system_files.py` says what is asked for.

Without FILE_FLAG_OVERLAPPED the reads of a handle wait for each other. Each has an event of its own: a handle that
several reads are under way on does not tell which of them has ended. Cached pages are no process's, and free for any to
take, so there is nothing to drop.

Sources: learn.microsoft.com, "File Buffering", "CreateFileW", "ReadFile", "GetOverlappedResult", "Synchronous and
Asynchronous I/O".
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from penstock.system import kernel32
from penstock.system.kernel32 import Overlapped

ALIGNMENT = 4096
"""Sectors are of 512 or 4096 bytes."""
MOST_BYTES = 1 << 30
"""Of one read, whose size is a DWORD."""


def open_file(path: Path, direct: bool) -> int:
    flags = kernel32.FILE_FLAG_OVERLAPPED | (kernel32.FILE_FLAG_NO_BUFFERING if direct else 0)
    return kernel32.open_handle(path, kernel32.GENERIC_READ, kernel32.OPEN_EXISTING, flags)


def read_at(file: int, view: memoryview, offset: int) -> int:
    library, nbytes, count = kernel32.library(), min(len(view), MOST_BYTES), ctypes.c_uint32()
    buffer = (ctypes.c_char * nbytes).from_buffer(view)
    event = library.CreateEventW(None, True, False, None)
    if not event:
        raise kernel32.failure()
    overlapped = Overlapped(offset=offset & 0xFFFF_FFFF, offset_high=offset >> 32, event=event)
    try:
        begun = library.ReadFile(file, buffer, nbytes, None, ctypes.byref(overlapped))
        if not begun and kernel32.last_error() != kernel32.ERROR_IO_PENDING:
            return _end_or_raise()
        if not library.GetOverlappedResult(file, ctypes.byref(overlapped), ctypes.byref(count), True):
            return _end_or_raise()
        return count.value
    except OSError:
        raise
    except BaseException:  # Ctrl-C: nothing may be written to the buffer once it is somebody else's
        library.CancelIoEx(file, ctypes.byref(overlapped))
        library.GetOverlappedResult(file, ctypes.byref(overlapped), ctypes.byref(count), True)
        raise
    finally:
        library.CloseHandle(event)


def _end_or_raise() -> int:
    """0 where the file ends; otherwise what went wrong."""
    if kernel32.last_error() == kernel32.ERROR_HANDLE_EOF:
        return 0
    raise kernel32.failure()


def close_file(file: int) -> None:
    kernel32.library().CloseHandle(file)


def drop(file: int, offset: int = 0, nbytes: int = 0) -> None:
    pass


def sync(descriptor: int) -> None:
    os.fsync(descriptor)
