"""Reading past the page cache of Linux, and of what else has O_DIRECT: `system_files.py` says what is asked for.

Sources: open(2) on O_DIRECT and its alignment; posix_fadvise(2).
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

if sys.platform == "win32" or sys.platform == "darwin":
    raise ImportError("these have files of their own")  # and mypy need not look for what they lack

ALIGNMENT = 4096
"""Disks ask for 512 or 4096."""


def open_file(path: Path, direct: bool) -> int:
    if direct and not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))


def read_at(file: int, view: memoryview, offset: int) -> int:
    return os.preadv(file, [view], offset)


def close_file(file: int) -> None:
    os.close(file)


def drop(file: int, offset: int = 0, nbytes: int = 0) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_DONTNEED)


def sync(descriptor: int) -> None:
    os.fsync(descriptor)
