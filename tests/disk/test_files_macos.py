"""Reads as macOS is asked for them, on a model of it.

What is modelled, and where it is said: F_NOCACHE and F_RDAHEAD are set per file, reads at multiples of a page into
pages go past the cache, others through it (xnu, bsd/vfs/vfs_cluster.c); reads of more than INT_MAX bytes are refused
with EINVAL (read(2) of macOS); msync(MS_INVALIDATE) gives up the pages of a mapped range (msync(2)); a mapping needs a
file that is open for reading (mmap(2)); F_FULLFSYNC is refused by file systems that have none (fcntl(2)).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.disk import files
from penstock.disk.files import DirectReadWarning, Extent, Files
from penstock.disk.new_files import new_file
from penstock.errors import ReadError
from penstock.system.pages import page_array

files_macos = pytest.importorskip("penstock.disk.files_macos", reason="needs fcntl", exc_type=ImportError)
if not hasattr(os, "preadv"):
    pytest.skip("needs preadv", allow_module_level=True)

PAGE = 4 * mmap.PAGESIZE
"""As on Apple silicon, beside Linux on x86-64."""
INT_MAX = (1 << 31) - 1
CONTENT = np.random.default_rng(2).integers(0, 256, 5 * PAGE + 123, np.uint8)
SIZE = len(CONTENT)


class MacOS:
    """What macOS has been told, and how its reads went."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: set[int] = set()
        """Commands of fcntl that the file system has not."""
        self.set: dict[int, dict[int, int]] = {}
        self.ways: list[str] = []
        self.dropped: list[bytes] = []
        self.synced: list[str] = []
        self._preadv, self._fsync = os.preadv, os.fsync
        monkeypatch.setattr(files_macos, "fcntl", SimpleNamespace(fcntl=self.fcntl))
        monkeypatch.setattr(files_macos, "_libc", lambda: SimpleNamespace(msync=self.msync))
        monkeypatch.setattr(files_macos, "ALIGNMENT", PAGE)
        monkeypatch.setattr(files, "ALIGNMENT", PAGE)
        monkeypatch.setattr(files, "system", files_macos)
        monkeypatch.setattr("penstock.disk.new_files.system", files_macos)
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fcntl(self, descriptor: int, command: int, argument: int = 0) -> int:
        os.fstat(descriptor)  # raises where it is not open
        if command in self.refuses:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        if command == files_macos.F_FULLFSYNC:
            self.synced.append("full")
        self.set.setdefault(descriptor, {})[command] = argument
        return 0

    def preadv(self, descriptor: int, views: list[memoryview], offset: int) -> int:
        address = np.frombuffer(views[0], np.uint8).ctypes.data
        nbytes = sum(map(len, views))
        if nbytes > INT_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        settings = self.set.get(descriptor, {})
        past = settings.get(48) == 1 and settings.get(45) == 0 and not (address | nbytes | offset) % PAGE
        self.ways.append("past" if past else "cached")
        return self._preadv(descriptor, views, offset)

    def msync(self, address: ctypes.c_void_p, nbytes: ctypes.c_size_t, flags: int) -> int:
        assert flags == 2
        assert address.value is not None
        assert address.value % mmap.PAGESIZE == 0
        self.dropped.append(ctypes.string_at(address.value, nbytes.value))
        return 0

    def fsync(self, descriptor: int) -> None:
        self.synced.append("plain")
        self._fsync(descriptor)


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> MacOS:
    return MacOS(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(CONTENT.tobytes())
    return path


@pytest.fixture
def opened() -> Iterator[Files]:
    opened = Files()
    yield opened
    opened.close()


def read(opened: Files, path: Path, offset: int, nbytes: int) -> bytes:
    """Into a buffer that begins at one of macOS's pages, as mappings do there."""
    pages = page_array(files.buffer_bytes(nbytes) + PAGE)
    begin = -pages.ctypes.data % PAGE
    return opened.read(Extent(path, offset, nbytes), pages[begin : begin + files.buffer_bytes(nbytes)]).tobytes()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, SIZE), (SIZE - 1, 1), (PAGE - 1, 2), (13, 30000), (PAGE, PAGE)])
def test_any_range_is_read_past_the_cache(macos: MacOS, path: Path, opened: Files, offset: int, nbytes: int) -> None:
    assert read(opened, path, offset, nbytes) == CONTENT[offset : offset + nbytes].tobytes()
    assert set(macos.ways) == {"past"}
    assert macos.dropped == []


def test_a_file_system_that_cannot(macos: MacOS, path: Path, opened: Files) -> None:
    """What came through the cache is dropped from it, up to the end of the file."""
    macos.refuses = {files_macos.F_NOCACHE}
    with pytest.warns(DirectReadWarning, match="no direct reads"):
        assert read(opened, path, PAGE + 5, 2 * PAGE) == CONTENT[PAGE + 5 : 3 * PAGE + 5].tobytes()
    assert read(opened, path, 5 * PAGE, 100) == CONTENT[5 * PAGE : 5 * PAGE + 100].tobytes()
    assert macos.ways == ["cached"] * 2
    assert macos.dropped == [CONTENT[PAGE : 4 * PAGE].tobytes(), CONTENT[5 * PAGE :].tobytes()]


def test_what_refused_is_closed(macos: MacOS, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macos.refuses, closed, close = {files_macos.F_RDAHEAD}, [], os.close
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close(descriptor))
    opened = Files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DirectReadWarning)
        read(opened, path, 0, 10)
    opened.close()
    assert len(closed) == 2


def test_a_file_that_shrinks(macos: MacOS, path: Path, opened: Files) -> None:
    read(opened, path, 0, 8)
    os.truncate(path, 2 * PAGE + 6)
    assert read(opened, path, 2 * PAGE, 6) == CONTENT[2 * PAGE : 2 * PAGE + 6].tobytes()
    with pytest.raises(ReadError, match=f"offset {2 * PAGE + 6} failed: the file ends there"):
        read(opened, path, 5000, 2 * PAGE)


def test_a_disk_that_fails(macos: MacOS, path: Path, opened: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int, views: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(ReadError, match=r"data: reading at offset 0 failed: Input/output error"):
        read(opened, path, 100, 50)


def test_a_folder(macos: MacOS, tmp_path: Path, opened: Files) -> None:
    with pytest.raises(ReadError, match="Is a directory"):
        read(opened, tmp_path, 0, 1)


def test_no_read_is_longer_than_a_read_may_be(
    macos: MacOS, path: Path, opened: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files_macos.MOST_BYTES % PAGE == 0
    assert files_macos.MOST_BYTES <= INT_MAX
    monkeypatch.setattr(files_macos, "MOST_BYTES", 2 * PAGE)
    monkeypatch.setitem(globals(), "INT_MAX", 2 * PAGE)
    assert read(opened, path, 0, SIZE) == CONTENT.tobytes()
    assert macos.ways == ["past"] * 3


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 0), (0, 100), (PAGE + 1, PAGE), (SIZE - 1, PAGE), (7 * PAGE, PAGE)])
def test_dropping(macos: MacOS, path: Path, offset: int, nbytes: int) -> None:
    with path.open("rb") as file:
        files_macos.drop(file.fileno(), offset, nbytes)
    begin, end = offset // mmap.PAGESIZE * mmap.PAGESIZE, min(SIZE, offset + nbytes) if nbytes else SIZE
    assert macos.dropped == ([CONTENT[begin:end].tobytes()] if end > begin else [])


def test_dropping_what_cannot_be_mapped(macos: MacOS, path: Path) -> None:
    """A file that is empty, and one that is open for writing alone."""
    (path.parent / "empty").touch()
    with (path.parent / "empty").open("rb") as file:
        files_macos.drop(file.fileno())
    with (path.parent / "new").open("wb") as file:
        file.write(b"x" * 100)
        file.flush()
        files_macos.drop(file.fileno())
    assert macos.dropped == []


def test_new_files_are_on_the_disk_and_out_of_the_cache(macos: MacOS, tmp_path: Path) -> None:
    with new_file(tmp_path / "file", tmp_path / "unfinished") as file:
        file.write(b"content")
    assert macos.synced[0] == "full"
    assert macos.dropped == [b"content"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_file_system_without_full_syncs(macos: MacOS, path: Path) -> None:
    macos.refuses = {files_macos.F_FULLFSYNC}
    with path.open("r+b") as file:
        files_macos.sync(file.fileno())
    assert macos.synced == ["plain"]
