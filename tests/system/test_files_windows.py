"""Opening, locking and replacing files as Windows is asked for it, on the model of it in `fake_kernel32.py`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.fake_kernel32 import FakeKernel32
from penstock.system import files_windows, kernel32
from penstock.system.files_windows import lock, lock_holder, open_movable, replace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the model's files are POSIX's")
NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel32]:
    fake = FakeKernel32()
    fake.install(monkeypatch)
    yield fake
    assert fake.misuse == []
    for file in [*fake.handles.values()]:
        os.close(file.descriptor)


@pytest.mark.parametrize(
    ("flags", "there", "expected"),
    [
        (NEW, None, b"12"),
        (NEW, b"abc", b"12c"),
        (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"abc", b"12"),
        (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, None, b"12"),
        (os.O_WRONLY | os.O_CREAT | os.O_EXCL, None, b"12"),
        (os.O_WRONLY | os.O_TRUNC, b"abc", b"12"),
        (os.O_RDWR, b"abc", b"12c"),
    ],
)
def test_opening(windows: FakeKernel32, tmp_path: Path, flags: int, there: bytes | None, expected: bytes) -> None:
    path = tmp_path / "file"
    if there is not None:
        path.write_bytes(there)
    descriptor = open_movable(path, flags)
    os.write(descriptor, b"12")
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("flags", "there", "error"),
    [
        (os.O_RDONLY, False, FileNotFoundError),
        (os.O_WRONLY | os.O_TRUNC, False, FileNotFoundError),
        (os.O_WRONLY | os.O_CREAT | os.O_EXCL, True, FileExistsError),
    ],
)
def test_what_cannot_be_opened(
    windows: FakeKernel32, tmp_path: Path, flags: int, there: bool, error: type[OSError]
) -> None:
    if there:
        (tmp_path / "file").touch()
    with pytest.raises(error) as raised:
        open_movable(tmp_path / "file", flags)
    assert raised.value.filename == str(tmp_path / "file")


def test_rights_are_those_that_are_asked_for(windows: FakeKernel32, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        open_movable(tmp_path / "file", flags)
    assert [file.wants for file in windows.handles.values()] == [1, 2, 3]
    assert {file.shares for file in windows.handles.values()} == {7}


def test_a_file_in_place_of_an_open_one(windows: FakeKernel32, tmp_path: Path) -> None:
    old = open_movable(tmp_path / "name", NEW)
    new = open_movable(tmp_path / "new", NEW)
    os.write(new, b"new")
    replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"new"
    assert not (tmp_path / "new").exists()
    assert os.fstat(old).st_size == 0
    assert len(windows.handles) == 2  # the one to rename by is closed


def test_names_of_any_length_and_alphabet(windows: FakeKernel32, tmp_path: Path) -> None:
    for name in ("a", "ab", "naïve-ключ-鍵-🔑"):
        (tmp_path / "new").write_bytes(name.encode())
        replace(tmp_path / "new", tmp_path / name)
        assert (tmp_path / name).read_bytes() == name.encode()


def test_relative_names(windows: FakeKernel32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new").write_bytes(b"1")
    replace(Path("new"), Path("name"))
    assert (tmp_path / "name").read_bytes() == b"1"


def test_a_file_that_others_have_open_otherwise(windows: FakeKernel32, tmp_path: Path) -> None:
    """As Python's own `open` does, which does not share it for deleting."""
    (tmp_path / "new").touch()
    (tmp_path / "name").write_bytes(b"old")
    name = str(tmp_path / "name")
    opened = windows._CreateFileW(name, kernel32.GENERIC_READ, 3, None, kernel32.OPEN_EXISTING, 0, None)
    with pytest.raises(PermissionError):
        replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"old"
    windows._CloseHandle(opened)
    replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b""


def test_a_file_system_without_such_renames(windows: FakeKernel32, tmp_path: Path) -> None:
    windows.posix_renames = False
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "name").write_bytes(b"old")
    replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "new", tmp_path / "name")


def test_a_lock_is_one_openings(windows: FakeKernel32, tmp_path: Path) -> None:
    one, other = (open_movable(tmp_path / "file", NEW) for _ in range(2))
    apart = open_movable(tmp_path / "apart", NEW)
    assert lock(one)
    assert not lock(other)
    assert lock(apart)
    windows.close_descriptor(one)
    assert lock(other)


def test_waiting_for_a_lock(windows: FakeKernel32, tmp_path: Path) -> None:
    one, other = (open_movable(tmp_path / "file", NEW) for _ in range(2))
    assert lock(one)
    got = []
    waiting = threading.Thread(target=lambda: got.append(lock(other, wait=True)))
    waiting.start()
    windows.close_descriptor(one)
    waiting.join()
    assert got == [True]


def test_a_file_system_without_locks(windows: FakeKernel32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_movable(tmp_path / "file", NEW)
    monkeypatch.setattr(windows, "LockFileEx", lambda *_: windows._fail(1))
    with pytest.raises(OSError, match="Errno 22"):
        lock(file)


def test_folders_are_locked_by_a_file_in_them(windows: FakeKernel32, tmp_path: Path) -> None:
    one, other = lock_holder(tmp_path), lock_holder(tmp_path)
    assert lock(one)
    assert not lock(other)
    assert [file.name for file in tmp_path.iterdir()] == [files_windows.LOCK_FILE]


def test_nothing_of_windows_is_found_elsewhere() -> None:
    for found in (kernel32.library, lambda: kernel32.handle_of(0), lambda: kernel32.descriptor_of(0, 0)):
        with pytest.raises(OSError, match="Windows"):
            found()
