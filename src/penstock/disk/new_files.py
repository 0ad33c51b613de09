"""Files that get their name once all of their bytes are on the disk, and room for them."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from penstock.disk.system_files import system
from penstock.errors import PenstockError
from penstock.system.files import replace

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNC_BYTES = 64 << 20
"""So much may wait in the page cache, which counts as memory, before it has to be on the disk."""
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems answer that do not sync folders."""


def settle(file: BinaryIO) -> None:
    """Have all bytes of a file on the disk and out of the page cache."""
    file.flush()
    system.sync(file.fileno())
    system.drop(file.fileno())


def write_through(file: BinaryIO, data: memoryview, sync_bytes: int = SYNC_BYTES) -> None:
    """Append to a file that is written from its begin on; every so often, `settle` it."""
    file.write(data)
    position = file.tell()
    if position // sync_bytes != (position - data.nbytes) // sync_bytes:
        settle(file)


@contextmanager
def new_file(path: Path, unfinished: Path) -> Iterator[BinaryIO]:
    """A file that is written as `unfinished` and becomes `path`, of the same file system, at the end of the block."""
    with unfinished.open("w+b") as file:  # readable, as `drop` asks for
        yield file
        settle(file)
    give_name(unfinished, path)


@contextmanager
def own_directory(prefix: str, folder: Path | None, problem: str, remedy: str) -> Iterator[Path]:
    """A new directory in `folder`, or where temporary ones are made, that is gone at the end of the block.

    Raises PenstockError, with this problem and the system's reason, where it cannot be made.
    """
    try:
        own = TemporaryDirectory(prefix=prefix, dir=folder)
    except OSError as error:
        raise PenstockError(f"{problem}: {error.strerror or error}.", remedy) from error
    with own as name:
        yield Path(name)


def give_name(unfinished: Path, path: Path) -> None:
    """Give a settled file its name, in a way that outlives a power failure."""
    replace(unfinished, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Raises OSError where the disk fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system lets one open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)
