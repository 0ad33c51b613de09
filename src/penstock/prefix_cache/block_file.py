"""A block of keys and values as a file (docs/format.md): head, payload, checksum. What is not that, to the byte, is
none."""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import xxhash

from penstock.disk.system_files import system
from penstock.system.files import open_movable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import FileIO
    from pathlib import Path

    from penstock.compute.kernels import U8

MAGIC, VERSION = b"penstock prefix\n", 1
_HEAD = struct.Struct("<16sIIQ32s")
_HASH = struct.Struct("<Q")
_FLAGS = getattr(os, "O_NOFOLLOW", 0)


class DamagedBlockError(Exception):
    """A file that is not what was written under its name."""


def file_bytes(block_bytes: int) -> int:
    """The size of the file of a block."""
    return _HEAD.size + block_bytes + _HASH.size


def is_block(path: Path, block_bytes: int) -> bool:
    """Whether there is a file of the right size; links are none."""
    try:
        told = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(told.st_mode) and told.st_size == file_bytes(block_bytes)


def read_block(path: Path, key: bytes, block: U8) -> None:
    """Read the block of this key into `block`, uint8 [bytes of a block]; the pages are dropped behind it.

    Raises DamagedBlockError where it is not what was written, OSError where it cannot be read.
    """
    # Without waiting, should a pipe be there in place of a file.
    descriptor = open_movable(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
    told, head, checksum = os.fstat(descriptor), bytearray(_HEAD.size), bytearray(_HASH.size)
    if not stat.S_ISREG(told.st_mode) or told.st_size != file_bytes(block.nbytes):
        os.close(descriptor)
        raise DamagedBlockError
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123
        for part in (head, block.data, checksum):
            _fill(file, memoryview(part))
        system.drop(descriptor)
    digest = xxhash.xxh3_64(bytes(head))
    digest.update(block.data)
    if head != _head(key, block.nbytes) or checksum != _HASH.pack(digest.intdigest()):
        raise DamagedBlockError


def write_block(path: Path, key: bytes, block: Iterable[U8], block_bytes: int) -> None:
    """Write a new file with a block, given part by part, for its owner alone. Raises OSError, and leaves no file then.

    Nothing waits for the disk: a block that a power failure tore is noticed when it is read.
    """
    descriptor = open_movable(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            digest = xxhash.xxh3_64()
            parts: list[bytes | memoryview] = [_head(key, block_bytes), *(one.data for one in block)]
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(_HASH.pack(digest.intdigest()))
            file.flush()
            system.drop(descriptor)  # begins to write them
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def drop_pages(path: Path) -> None:
    """Let what has reached the disk leave the page cache, which counts as memory."""
    with suppress(OSError), open(open_movable(path, os.O_RDONLY | _FLAGS), "rb") as file:  # noqa: PTH123
        system.drop(file.fileno())


def _head(key: bytes, block_bytes: int) -> bytes:
    return _HEAD.pack(MAGIC, VERSION, 0, block_bytes, key)


def _fill(file: FileIO, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise DamagedBlockError
        done += count
