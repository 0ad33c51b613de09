"""Reads as Windows is asked for them, on a model of it: `fake_kernel32.py` says what that is, and where it is from."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_kernel32 import FakeKernel32
from penstock.disk import files, files_windows
from penstock.disk.files import DirectReadWarning, Extent, Files, aligned_buffer
from penstock.errors import ReadError
from penstock.system import kernel32
from penstock.system.pages import page_array

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the model's files are POSIX's")
SECTOR = files_windows.ALIGNMENT
CONTENT = np.random.default_rng(1).integers(0, 256, 5 * SECTOR + 123, np.uint8)
SIZE = len(CONTENT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(CONTENT.tobytes())
    return path


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel32]:
    fake = FakeKernel32()
    fake.install(monkeypatch)
    monkeypatch.setattr(files, "system", files_windows)
    yield fake
    assert fake.misuse == []
    assert (fake.handles, fake.events, fake.pending) == ({}, set(), {})  # nothing is left open


def read(files: Files, path: Path, offset: int, nbytes: int) -> bytes:
    return files.read(Extent(path, offset, nbytes), aligned_buffer(nbytes)).tobytes()


def test_what_windows_has_of_a_structure() -> None:
    assert ctypes.sizeof(kernel32.Overlapped) == 32
    assert kernel32.Overlapped.offset.offset == 16
    assert kernel32.Overlapped.event.offset == 24


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("refuses", ["", "open", "read"])
@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, SIZE), (SIZE - 1, 1), (SECTOR - 1, 2), (13, 9000), (SECTOR, SECTOR)]
)
def test_any_range(windows: FakeKernel32, path: Path, at_once: bool, refuses: str, offset: int, nbytes: int) -> None:
    """Also where the file system has no unbuffered reads, which is told once."""
    windows.at_once, windows.refuses_direct = at_once, refuses
    opened = Files()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert read(opened, path, offset, nbytes) == CONTENT[offset : offset + nbytes].tobytes()
    opened.close()
    assert [warning.category for warning in told] == ([DirectReadWarning] if refuses else [])


def test_a_file_that_others_rename_and_delete(windows: FakeKernel32, path: Path) -> None:
    opened = Files()
    read(opened, path, 0, 10)
    [file] = windows.handles.values()
    assert file.shares == 1 | 2 | 4
    path.unlink()
    assert read(opened, path, 20, 10) == CONTENT[20:30].tobytes()
    opened.close()


@pytest.mark.parametrize("end_at_once", [True, False])
def test_a_file_that_shrinks(windows: FakeKernel32, path: Path, end_at_once: bool) -> None:
    windows.end_at_once = end_at_once
    opened = Files()
    read(opened, path, 0, 8)
    os.truncate(path, 2 * SECTOR)
    with pytest.raises(ReadError, match=f"offset {2 * SECTOR} failed: the file ends there"):
        read(opened, path, 5000, 2 * SECTOR)
    os.truncate(path, SECTOR + 6)
    with pytest.raises(ReadError, match=f"offset {SECTOR + 6} failed: the file ends there"):
        read(opened, path, 5, 2 * SECTOR)
    opened.close()


def test_short_reads_go_on(windows: FakeKernel32, path: Path) -> None:
    windows.short = 2 * SECTOR
    opened = Files()
    assert read(opened, path, 11, SIZE - 20) == CONTENT[11 : SIZE - 9].tobytes()
    assert [offset for offset, _ in windows.reads] == [0, 2 * SECTOR, 4 * SECTOR]
    opened.close()


def test_no_read_is_longer_than_a_read_may_be(
    windows: FakeKernel32, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files_windows.MOST_BYTES % SECTOR == 0
    assert files_windows.MOST_BYTES < 1 << 32
    monkeypatch.setattr(files_windows, "MOST_BYTES", 2 * SECTOR)
    opened = Files()
    assert read(opened, path, 0, SIZE) == CONTENT.tobytes()
    assert [nbytes for _, nbytes in windows.reads] == [2 * SECTOR] * 3
    opened.close()


def test_offsets_past_4_gib(windows: FakeKernel32, tmp_path: Path) -> None:
    path, offset = tmp_path / "long", (5 << 32) + 3 * SECTOR + 7
    with path.open("wb") as file:
        file.seek(offset)
        file.write(b"here")
    opened = Files()
    assert read(opened, path, offset, 4) == b"here"
    opened.close()


@pytest.mark.parametrize(
    ("code", "reason"), [(1117, "Input/output error"), (23, "Input/output error"), (5, "Permission")]
)
def test_a_disk_that_fails(windows: FakeKernel32, path: Path, code: int, reason: str) -> None:
    """1117 is ERROR_IO_DEVICE, 23 ERROR_CRC; neither means that direct reads are refused."""
    windows.short, windows.fails = SECTOR, {2 * SECTOR: code}
    opened = Files()
    with pytest.raises(ReadError, match=rf"data: reading at offset {2 * SECTOR} failed: {reason}"):
        read(opened, path, 100, SIZE - 100)
    windows.fails = {}
    assert read(opened, path, 0, SIZE) == CONTENT.tobytes()
    opened.close()


def test_a_file_that_is_gone_and_a_folder(windows: FakeKernel32, tmp_path: Path) -> None:
    opened = Files()
    with pytest.raises(ReadError, match=r"gone: reading at offset 0 failed: No such file"):
        read(opened, tmp_path / "gone", 5, 1)
    with pytest.raises(ReadError, match="failed: Permission denied"):
        read(opened, tmp_path, 0, 1)


def test_threads_read_a_file_at_once(windows: FakeKernel32, path: Path) -> None:
    opened = Files()

    def read_much(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            offset, nbytes = int(random.integers(0, SIZE // 2)), int(random.integers(1, SIZE // 2))
            assert read(opened, path, offset, nbytes) == CONTENT[offset : offset + nbytes].tobytes()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read_much, range(4)))
    opened.close()


def test_after_ctrl_c_nothing_is_written_any_more(
    windows: FakeKernel32, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = files_windows.open_file(path, direct=True)
    buffer, result = page_array(SECTOR), windows.GetOverlappedResult

    def interrupted(*given: object) -> int:
        monkeypatch.setattr(windows, "GetOverlappedResult", result)
        raise KeyboardInterrupt

    monkeypatch.setattr(windows, "GetOverlappedResult", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files_windows.read_at(handle, buffer.data, 0)
    assert windows.pending == {}
    assert not buffer.any()
    files_windows.close_file(handle)


def test_no_event_is_to_be_had(windows: FakeKernel32, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = files_windows.open_file(path, direct=True)
    monkeypatch.setattr(windows, "CreateEventW", lambda *_: windows._fail(1450, None))  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Errno 12"):
        files_windows.read_at(handle, page_array(SECTOR).data, 0)
    assert windows.reads == []
    files_windows.close_file(handle)
