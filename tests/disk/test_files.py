from __future__ import annotations

import errno
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.disk.files import ALIGNMENT, DirectReadWarning, Extent, Files, aligned_buffer, buffer_bytes, read_file
from penstock.errors import ReadError

CONTENT = np.random.default_rng(0).integers(0, 256, 5 * ALIGNMENT + 123, np.uint8)
SIZE = len(CONTENT)
IS_LINUX = sys.platform not in ("darwin", "win32")
needs_preadv = pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "data"
    path.write_bytes(CONTENT.tobytes())
    return path


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DirectReadWarning)  # wherever the tests' files are
        yield files
    files.close()


@pytest.fixture(params=["direct", "refused when opened", "refused when read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with and without direct reads; some say so only when the first read comes."""
    if request.param == "refused when opened":
        refuse_to_open(monkeypatch)
    if request.param == "refused when read":
        refuse_to_read(monkeypatch)
    return str(request.param)


def is_direct(flags: int) -> bool:
    return bool(flags & getattr(os, "O_DIRECT", 0))


def refuse_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_LINUX:
        pytest.skip("other systems have tests of their own")
    real_open = os.open

    def fake_open(path: Any, flags: int, *rest: Any) -> int:
        if is_direct(flags):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", fake_open)


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_LINUX:
        pytest.skip("other systems have tests of their own")
    import fcntl

    real_preadv = os.preadv

    def fake_preadv(descriptor: int, views: list[memoryview], offset: int) -> int:
        if is_direct(fcntl.fcntl(descriptor, fcntl.F_GETFL)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_preadv(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", fake_preadv)


def read(files: Files, path: Path, offset: int, nbytes: int) -> bytes:
    return files.read(Extent(path, offset, nbytes), aligned_buffer(nbytes)).tobytes()


@given(st.integers(0, 20 * ALIGNMENT))
def test_buffers_are_aligned_and_hold_an_extent_at_any_offset(nbytes: int) -> None:
    buffer = aligned_buffer(nbytes)
    assert buffer.ctypes.data % ALIGNMENT == 0
    assert len(buffer) == buffer_bytes(nbytes)
    assert len(buffer) % ALIGNMENT == 0
    assert len(buffer) >= nbytes + ALIGNMENT - 1
    assert len(buffer) < nbytes + 2 * ALIGNMENT


@given(st.data())
def test_any_range(path: Path, data: Any) -> None:
    offset = data.draw(st.integers(0, SIZE))
    nbytes = data.draw(st.integers(0, SIZE - offset))
    files = Files()
    try:
        buffer = aligned_buffer(nbytes)
        got = files.read(Extent(path, offset, nbytes), buffer)
        assert got.tobytes() == CONTENT[offset : offset + nbytes].tobytes()
        assert nbytes == 0 or got.base is buffer
    finally:
        files.close()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, SIZE), (SIZE - 1, 1), (ALIGNMENT - 1, 2), (13, 9000)])
def test_every_kind_of_file_system(path: Path, files: Files, way: str, offset: int, nbytes: int) -> None:
    for _ in range(2):
        assert read(files, path, offset, nbytes) == CONTENT[offset : offset + nbytes].tobytes()


def test_a_file_system_without_direct_reads_is_told_once(path: Path, tmp_path: Path, way: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * 100)
    files = Files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            read(files, path, 0, 10)
            read(files, other, 0, 10)
    files.close()
    told = [str(warning.message) for warning in caught if warning.category is DirectReadWarning]
    if way != "direct":
        assert told == [
            f"{path}: its file system has no direct reads. Reading through the page cache, which is slower."
        ]


def test_pages_read_through_the_cache_are_dropped(path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_open(monkeypatch)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: dropped.append(advice))
    read(files, path, ALIGNMENT + 5, 2 * ALIGNMENT)
    assert dropped == [(ALIGNMENT, 3 * ALIGNMENT, os.POSIX_FADV_DONTNEED)]


def test_threads_share_a_file(path: Path, files: Files, way: str) -> None:
    """And do not lead each other astray."""

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            offset, nbytes = int(random.integers(0, SIZE // 2)), int(random.integers(1, SIZE // 2))
            data = files.read(Extent(path, offset, nbytes), aligned_buffer(nbytes))
            assert data.tobytes() == CONTENT[offset : offset + nbytes].tobytes()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))


@needs_preadv
@pytest.mark.parametrize("most", [ALIGNMENT, 2 * ALIGNMENT])
def test_short_reads_go_on(path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:most]], offset))
    assert read(files, path, 11, SIZE - 20) == CONTENT[11 : SIZE - 9].tobytes()


def test_short_buffered_reads_may_end_anywhere(path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_open(monkeypatch)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:777]], offset))
    assert read(files, path, 11, 9000) == CONTENT[11:9011].tobytes()


def test_a_file_may_be_unlinked_after_its_first_read(tmp_path: Path, files: Files, way: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdefgh")
    assert read(files, path, 0, 4) == b"abcd"
    path.unlink()
    assert read(files, path, 4, 4) == b"efgh"


def test_a_file_that_shrinks(tmp_path: Path, files: Files, way: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3 * ALIGNMENT))
    read(files, path, 0, 8)
    os.truncate(path, 2 * ALIGNMENT + 6)
    assert read(files, path, 2 * ALIGNMENT, 6) == bytes(6)
    with pytest.raises(ReadError) as caught:
        read(files, path, 5000, 2 * ALIGNMENT)
    assert caught.value.problem == (
        f"{path}: reading at offset {2 * ALIGNMENT + 6} failed: the file ends there: it shrank after it was opened."
    )
    assert "Check the disk and the file" in caught.value.remedy


def test_a_file_that_ends_at_a_block(tmp_path: Path, files: Files, way: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(ALIGNMENT))
    with pytest.raises(ReadError, match=f"offset {ALIGNMENT} failed: the file ends there"):
        read(files, path, 10, 2 * ALIGNMENT)


def test_a_file_that_is_gone(tmp_path: Path, files: Files) -> None:
    with pytest.raises(ReadError) as caught:
        read(files, tmp_path / "gone", 5, 1)
    assert caught.value.problem == f"{tmp_path / 'gone'}: reading at offset 0 failed: No such file or directory."


def test_a_path_that_cannot_be_read(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_open(monkeypatch)
    with pytest.raises(ReadError, match="Is a directory"):
        read(files, tmp_path, 0, 1)


@needs_preadv
def test_a_disk_that_fails(path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    real, offsets = os.preadv, []

    def fails_later(descriptor: int, views: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        if len(offsets) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, [views[0][:ALIGNMENT]], offset)

    monkeypatch.setattr(os, "preadv", fails_later)
    with pytest.raises(ReadError) as caught:
        read(files, path, 100, SIZE - 100)
    assert caught.value.problem == f"{path}: reading at offset {2 * ALIGNMENT} failed: Input/output error."
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.setattr(os, "preadv", real)
    assert read(files, path, 0, SIZE) == CONTENT.tobytes()


def test_threads_that_start_on_a_file_together_leave_no_descriptor_open(
    path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, all_here, real_open = [], threading.Barrier(4), os.open

    def slow_open(*args: Any) -> int:
        opened.append(real_open(*args))
        threading.Event().wait(0.02)
        return opened[-1]

    monkeypatch.setattr(os, "open", slow_open)
    files, right = Files(), []

    def start() -> None:
        all_here.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DirectReadWarning)
            right.append(read(files, path, 5, 9000) == CONTENT[5:9005].tobytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files.close()
    assert right == [True] * 4
    left = [descriptor for descriptor in opened if is_open(descriptor)]
    assert left == []


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_small_files_are_read_whole(path: Path) -> None:
    assert read_file(path) == CONTENT.tobytes()
    assert read_file(path, 100) == CONTENT[:100].tobytes()
    assert read_file(path, SIZE + 1) == CONTENT.tobytes()


def test_small_files_that_cannot_be_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ReadError, match=r"gone: reading at offset 0 failed: No such file or directory\.\nCheck the disk"
    ):
        read_file(tmp_path / "gone")
    with pytest.raises(ReadError, match="reading at offset 0 failed: Is a directory"):
        read_file(tmp_path)
    larger = os.stat_result((0o100644, 0, 0, 1, 0, 0, SIZE + 1, 0, 0, 0))
    monkeypatch.setattr("penstock.disk.files.os.fstat", lambda descriptor: larger)
    with pytest.raises(ReadError, match=rf"data: reading at offset {SIZE} failed: the file ends there, though"):
        read_file(path)
    assert read_file(path, SIZE) == CONTENT.tobytes()
