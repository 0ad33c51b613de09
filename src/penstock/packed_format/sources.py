"""Where the original bytes of a file that is being packed come from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.disk.in_order import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from penstock.compute.kernels import U8

READ_THREADS = 4
READS_AHEAD = 6


class Source(Protocol):
    """One original safetensors file, wherever it is."""

    @property
    def name(self) -> str:
        """Its path, relative to the checkpoint, with slashes."""

    @property
    def size(self) -> int:
        """Of the whole file, bytes."""

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        """The bytes of each (begin, nbytes), in this order, read ahead as the source sees fit.

        Each array is the receiver's to keep. Raises ReadError, or another PenstockError.
        """


class LocalSource:
    """A file on a disk of this machine, read past the page cache."""

    def __init__(self, path: Path, name: str, files: Files, pool: ThreadPoolExecutor) -> None:
        """`pool`: threads that read."""
        self.name = name
        self.size = path.stat().st_size
        self._path, self._files, self._pool = path, files, pool

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        return in_order(self._pool, (partial(self._read, begin, nbytes) for begin, nbytes in ranges), READS_AHEAD)

    def header(self) -> bytes:
        """The file's first bytes: length, header, padding."""
        length = int.from_bytes(self._read(0, 8), "little")
        return self._read(0, 8 + length).tobytes()

    def _read(self, begin: int, nbytes: int) -> U8:
        return self._files.read(Extent(self._path, begin, nbytes), aligned_buffer(nbytes))
