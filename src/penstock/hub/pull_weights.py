"""One file of weights, from the Hub to its place in a directory of packed ones."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.disk.in_order import in_order
from penstock.disk.new_files import SYNC_BYTES, give_name, settle
from penstock.errors import CheckpointError, ChecksumError
from penstock.packed_format.chunks import RUN_BYTES, RUNS_AHEAD, original_bytes
from penstock.packed_format.reader import read_packed
from penstock.packed_format.runs import PassOrder
from penstock.packing.pack_file import pack_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from penstock.compute.kernels import U8
    from penstock.hub.folder import HubFolder
    from penstock.packing.pack_folder import Original, PackFolder


@dataclass(frozen=True)
class WeightFile:
    """A file `original` of `hub` that is to be in `folder`.

    `on_bytes` is told how many more of its bytes are here; `on_check` when all are, and are read again.
    """

    folder: PackFolder
    hub: HubFolder
    original: Original
    pool: ThreadPoolExecutor
    on_bytes: Callable[[int], None]
    on_check: Callable[[], None]

    def fetch_and_pack(self, header: bytes, ranks: Mapping[str, int]) -> int:
        """Have the packed form of the file; how many bytes were downloaded for it.

        `header`: its first bytes. `ranks`: when a pass uses which tensor. Raises CheckpointError where the Hub refuses
        or what came is not what it lists, and OSError.
        """
        if self._is_here():
            return 0
        order = PassOrder(self.original.prefix, ranks)
        packed, unfinished = self._whole(), self.folder.partial(self.original.name)
        saved = self.original.size
        if packed.exists():
            self.on_bytes(saved)
        else:
            source = self.hub.source(self.original.name)
            saved = pack_file(source, header, packed, unfinished, order, self.pool, self.on_bytes)
        self._check(packed, _original_blocks)
        return self.original.size - saved

    def fetch(self) -> int:
        """Have the file as it is; how many bytes were downloaded for it. Raises as `fetch_and_pack`."""
        if self._is_here():
            return 0
        whole, unfinished = self._whole(), self.folder.partial(self.original.name)
        saved = self.original.size
        if whole.exists():
            self.on_bytes(saved)
        else:
            saved = self._append(unfinished)
            give_name(unfinished, whole)
        self._check(whole, _blocks)
        return self.original.size - saved

    def _is_here(self) -> bool:
        """A file gets its name only once it was checked."""
        here = self.folder.target(self.original.name).exists()
        if here:
            self.on_bytes(self.original.size)
        return here

    def _whole(self) -> Path:
        """Where the file is when it is complete, and has yet to be checked."""
        return self.folder.partial(f"{self.original.name}.whole")

    def _append(self, unfinished: Path) -> int:
        """Get what is still lacking of a file that is kept as it is; how many bytes an earlier call has saved."""
        unfinished.touch()
        with unfinished.open("a+b") as file:
            saved = begin = file.tell()
            self.on_bytes(saved)
            size, settled = self.original.size, saved
            ranges = [(place, min(RUN_BYTES, size - place)) for place in range(begin, size, RUN_BYTES)]
            with closing(self.hub.source(self.original.name).ranges(ranges)) as blocks:
                for block in blocks:
                    file.write(block.data)
                    self.on_bytes(block.nbytes)
                    if file.tell() - settled >= SYNC_BYTES:
                        settle(file)
                        settled = file.tell()
            settle(file)
        return saved

    def _check(self, whole: Path, blocks: Callable[[Path, Files, ThreadPoolExecutor], Iterator[U8]]) -> None:
        """Give the file its name, if its original bytes have the checksum that the Hub lists; delete it otherwise."""
        self.on_check()
        listed = self.hub.repository.files[self.original.name]
        hasher, files = listed.hasher(), Files()
        try:
            for block in blocks(whole, files, self.pool):
                hasher.update(block.data)
            self.hub.check(listed, hasher.hexdigest())
            read_packed(whole)
        except (CheckpointError, ChecksumError):
            whole.unlink()
            raise
        finally:
            files.close()
        give_name(whole, self.folder.target(self.original.name))


def _original_blocks(path: Path, files: Files, pool: ThreadPoolExecutor) -> Iterator[U8]:
    """The original bytes of a packed file, in their order. Raises FormatError, ReadError."""
    packed = read_packed(path)
    yield np.frombuffer(packed.original_header, np.uint8)
    yield from original_bytes(packed, files, pool)


def _blocks(path: Path, files: Files, pool: ThreadPoolExecutor) -> Iterator[U8]:
    """The bytes of a file. Raises ReadError."""
    size = path.stat().st_size
    extents = (Extent(path, begin, min(RUN_BYTES, size - begin)) for begin in range(0, size, RUN_BYTES))
    return in_order(pool, (partial(_read, files, extent) for extent in extents), RUNS_AHEAD)


def _read(files: Files, extent: Extent) -> U8:
    return files.read(extent, aligned_buffer(extent.nbytes))
