"""Reading byte ranges of a checkpoint's files, ahead of whoever uses them.

Goals: the next pieces are in memory before they are asked for, in a ring of fixed size; nothing stays in the page
cache.
Non-goals: what the bytes mean.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from penstock.kernels import U8


@dataclass(frozen=True, slots=True)
class Extent:
    """`nbytes` bytes of the file `path`, from `offset` on."""

    path: Path
    offset: int
    nbytes: int


class Files:
    """The files of a checkpoint, each opened once, so that a file renamed or unlinked in mid-run does no harm."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def read(self, extent: Extent, buffer: U8) -> None:
        """Fill buffer[:extent.nbytes]. Raises ReadError, naming the file and the offset."""
        view = buffer[: extent.nbytes].data
        descriptor = self._descriptor(extent.path)
        done = 0
        while done < extent.nbytes:
            try:
                count = os.preadv(descriptor, [view[done:]], extent.offset + done)
            except OSError as error:
                raise _read_error(extent, done, os.strerror(error.errno or 0)) from error
            if count == 0:
                raise _read_error(extent, done, "the file ends there: it shrank after it was opened")
            done += count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, extent.offset, extent.nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                try:
                    self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise _read_error(Extent(path, 0, 0), 0, os.strerror(error.errno or 0)) from error
            return self._descriptors[path]


def _read_error(extent: Extent, done: int, reason: str) -> ReadError:
    return ReadError(
        f"{extent.path}: reading at offset {extent.offset + done} failed: {reason}.",
        "Check the disk and the file (its size, its checksum); download it again if it is damaged.",
    )


@dataclass(slots=True)
class ReadTotals:
    """Running totals of a reader: bytes and seconds of completed reads, and seconds that the consumer waited."""

    bytes_read: int = 0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Pending:
    index: int
    buffer: U8
    seconds: Future[float]


class ReadAhead:
    """Extents in cyclic order, read ahead into a ring of `depth` buffers by as many threads.

    One thread calls `take` and `give_back`; each call starts the reads that the free buffers allow. Taking an extent
    out of turn is correct, and costs what was read ahead in vain.
    """

    def __init__(self, files: Files, extents: Sequence[Extent], skip: Callable[[int], bool], depth: int) -> None:
        self._files = files
        self._extents = extents
        self._skip = skip
        buffer_bytes = max((extent.nbytes for extent in extents), default=0)
        self.ring_bytes = depth * buffer_bytes
        self._free = [np.empty(buffer_bytes, np.uint8) for _ in range(depth)]
        self._pending: deque[_Pending] = deque()
        self._newest = 0
        self._threads = ThreadPoolExecutor(depth, thread_name_prefix="penstock-read")
        self.totals = ReadTotals()

    def take(self, index: int) -> U8:
        """The bytes of extents[index], waiting for them; the caller gives the array back. Raises ReadError."""
        while self._pending and self._pending[0].index != index:
            self._drop()
        if not self._pending:
            self._start(index)
        pending = self._pending.popleft()
        self._read_on()
        begin = time.perf_counter()
        try:
            self.totals.read_seconds += pending.seconds.result()
        except BaseException:
            self._drain()
            wait([pending.seconds])
            self._free.append(pending.buffer)
            raise
        self.totals.wait_seconds += time.perf_counter() - begin
        nbytes = self._extents[index].nbytes
        self.totals.bytes_read += nbytes
        return pending.buffer[:nbytes]

    def give_back(self, data: U8) -> None:
        """Let the ring reuse an array that `take` returned."""
        self._free.append(data.base if data.base is not None else data)
        self._read_on()

    def close(self) -> None:
        self._drain()
        self._threads.shutdown()

    def _read_on(self) -> None:
        """Start reads of the extents that follow the newest one, as far as buffers are free."""
        newest, count = self._newest, len(self._extents)
        for index in (*range(newest + 1, count), *range(newest)):
            if not self._free:
                return
            if not self._skip(index):
                self._start(index)

    def _start(self, index: int) -> None:
        buffer = self._free.pop()
        self._newest = index
        self._pending.append(_Pending(index, buffer, self._threads.submit(self._read, index, buffer)))

    def _read(self, index: int, buffer: U8) -> float:
        begin = time.perf_counter()
        self._files.read(self._extents[index], buffer)
        return time.perf_counter() - begin

    def _drop(self) -> None:
        pending = self._pending.popleft()
        if not pending.seconds.cancel():
            wait([pending.seconds])
        self._free.append(pending.buffer)

    def _drain(self) -> None:
        while self._pending:
            self._drop()
