"""Reading past the page cache of macOS, which has no O_DIRECT: `system_files.py` says what is asked for.

F_NOCACHE has the kernel read straight into the caller's pages, where offset, size and address are at multiples of a
page; otherwise, and where pages are cached already, it copies. Mapping a file and calling msync(MS_INVALIDATE) gives up
its pages. fsync does not wait for what the drive itself keeps; F_FULLFSYNC does.

Sources: fcntl(2) and msync(2) of macOS; xnu, bsd/sys/fcntl.h, bsd/sys/mman.h, bsd/vfs/vfs_cluster.c (cluster_read_ext).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

if sys.platform == "win32":
    raise ImportError("nothing here is of Windows")  # says to mypy what the import of fcntl says to Python

F_RDAHEAD, F_NOCACHE, F_FULLFSYNC = 45, 48, 51
MS_INVALIDATE = 2
ALIGNMENT = max(4096, mmap.PAGESIZE)
"""A page: 16 KiB on Apple silicon."""
MOST_BYTES = 1 << 30
"""Of one read: macOS refuses those past 2 GiB."""


def open_file(path: Path, direct: bool) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if direct:
        try:
            fcntl.fcntl(descriptor, F_NOCACHE, 1)
            fcntl.fcntl(descriptor, F_RDAHEAD, 0)
        except OSError as error:
            os.close(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from error
    return descriptor


def read_at(file: int, view: memoryview, offset: int) -> int:
    return os.preadv(file, [view[:MOST_BYTES]], offset)


def close_file(file: int) -> None:
    os.close(file)


def drop(file: int, offset: int = 0, nbytes: int = 0) -> None:
    begin, size = offset // mmap.PAGESIZE * mmap.PAGESIZE, os.fstat(file).st_size
    length = (min(size, offset + nbytes) if nbytes else size) - begin
    if length <= 0:
        return
    with suppress(OSError), mmap.mmap(file, length, access=mmap.ACCESS_READ, offset=begin) as mapping:
        address = np.frombuffer(mapping, np.uint8).ctypes.data
        _libc().msync(ctypes.c_void_p(address), ctypes.c_size_t(length), MS_INVALIDATE)


def sync(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, F_FULLFSYNC)
    except OSError:  # a file system that has none, on a network say
        os.fsync(descriptor)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
