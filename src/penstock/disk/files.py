"""The files of a checkpoint, read past the page cache.

Direct reads go from the disk into buffers of ours: no copies, and nothing stays behind in memory that would count
against a ceiling. Where the file system has none, buffered reads serve, each followed by a request to drop its pages.
How a system does all that: `system_files.py`.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from penstock.disk.system_files import system
from penstock.errors import ReadError
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from penstock.compute.kernels import U8

ALIGNMENT = system.ALIGNMENT
"""Direct reads begin and end at multiples of this, and so do their buffers."""


class DirectReadWarning(UserWarning):
    """A file system without direct reads."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`nbytes` bytes of the file `path`, from `offset` on."""

    path: Path
    offset: int
    nbytes: int


def buffer_bytes(nbytes: int) -> int:
    """The size of a buffer for any extent of `nbytes`, rounded outward at both ends."""
    return (-(-nbytes // ALIGNMENT) + 1) * ALIGNMENT


def aligned_buffer(nbytes: int) -> U8:
    """An array of buffer_bytes(nbytes), aligned for direct reads; its pages go back to the system when it is freed."""
    return page_array(buffer_bytes(nbytes))


class _File(NamedTuple):
    number: int
    """As the system knows it."""
    direct: bool


class Files:
    """Each file opened once, so that one that is renamed or unlinked in mid-run does no harm. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warned = False
        self._files: dict[Path, _File] = {}
        self._refused: list[_File] = []
        """Files that were opened for direct reads in vain, which other threads may be at."""

    def read(self, extent: Extent, buffer: U8) -> U8:
        """The extent's bytes, in a part of `buffer`, an aligned_buffer for that many bytes or more.

        Raises ReadError, naming the file and the offset. Warns once (DirectReadWarning) where a file system has no
        direct reads.
        """
        begin = extent.offset // ALIGNMENT * ALIGNMENT
        skip = extent.offset - begin
        view = buffer[: -(-(skip + extent.nbytes) // ALIGNMENT) * ALIGNMENT].data
        file, done = self._file(extent.path), 0
        while done < skip + extent.nbytes:
            try:
                count = system.read_at(file.number, view[done:], begin + done)
            except OSError as error:
                if file.direct and error.errno == errno.EINVAL:
                    file = self._give_up_direct(extent.path, file)
                    continue
                raise _error(extent.path, begin + done, os.strerror(error.errno or 0)) from error
            done += count
            # A direct read stops amid a block only where the file ends; to go on from there would be misaligned.
            if done < skip + extent.nbytes and (count == 0 or (file.direct and done % ALIGNMENT)):
                raise _error(extent.path, begin + done, "the file ends there: it shrank after it was opened")
        if not file.direct:
            system.drop(file.number, begin, len(view))
        return buffer[skip : skip + extent.nbytes]

    def close(self) -> None:
        while self._files:
            system.close_file(self._files.popitem()[1].number)
        while self._refused:
            system.close_file(self._refused.pop().number)

    def _file(self, path: Path) -> _File:
        with self._lock:
            if path not in self._files:
                self._files[path] = _open(path)
                self._warn_if_buffered(path)
            return self._files[path]

    def _give_up_direct(self, path: Path, refused: _File) -> _File:
        """The file opened anew for buffered reads, once for all threads."""
        with self._lock:
            if self._files[path] == refused:
                self._files[path] = _open(path, direct=False)
                self._refused.append(refused)
                self._warn_if_buffered(path)
            return self._files[path]

    def _warn_if_buffered(self, path: Path) -> None:
        if not self._files[path].direct and not self._warned:
            self._warned = True
            message = f"{path}: its file system has no direct reads. Reading through the page cache, which is slower."
            warnings.warn(message, DirectReadWarning, stacklevel=2)


def read_file(path: Path, most: int | None = None) -> bytes:
    """All bytes of a small file, or its first `most`. Raises ReadError, naming it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if most is None else file.read(most)
    except OSError as error:
        raise _error(path, 0, os.strerror(error.errno or 0)) from error
    if len(data) < (size if most is None else min(size, most)):
        raise _error(path, len(data), "the file ends there, though it is longer")
    return data


def _open(path: Path, direct: bool = True) -> _File:
    """Raises ReadError."""
    try:
        return _File(system.open_file(path, direct), direct)
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            return _open(path, direct=False)
        raise _error(path, 0, os.strerror(error.errno or 0)) from error


def _error(path: Path, offset: int, reason: str) -> ReadError:
    return ReadError(
        f"{path}: reading at offset {offset} failed: {reason}.",
        "Check the disk and the file (its size, its checksum); download it again if it is damaged.",
    )
