"""Opening, locking and replacing files on the system that the tests run on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from penstock.system.files import lock, lock_holder, open_movable, replace

NEW = os.O_RDWR | os.O_CREAT


@pytest.fixture(params=["file", "folder"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, int]:
    """Two openings of one file, or of one folder."""
    if request.param == "folder":
        return lock_holder(tmp_path), lock_holder(tmp_path)
    return open_movable(tmp_path / "file", NEW), open_movable(tmp_path / "file", NEW)


def test_a_lock_is_one_openings(two: tuple[int, int]) -> None:
    one, other = two
    assert lock(one)
    assert not lock(other)
    assert lock(one)
    os.close(one)
    assert lock(other)
    os.close(other)


def test_waiting_for_a_lock(two: tuple[int, int]) -> None:
    one, other = two
    assert lock(one)
    got = []
    waiting = threading.Thread(target=lambda: got.append(lock(other, wait=True)))
    waiting.start()
    os.close(one)
    waiting.join()
    assert got == [True]
    os.close(other)


def test_another_process_has_it(tmp_path: Path) -> None:
    """And no longer once that process is killed."""
    code = """
import os, sys
from penstock.system.files import lock, open_movable
print(lock(open_movable(sys.argv[1], os.O_RDWR | os.O_CREAT)), flush=True)
sys.stdin.read()
"""
    path = tmp_path / "file"
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"True"
        descriptor = open_movable(path, NEW)
        assert not lock(descriptor)
        process.kill()
        process.wait()
    assert lock(descriptor)
    os.close(descriptor)


def test_replacing_open_files(tmp_path: Path) -> None:
    old, new = open_movable(tmp_path / "name", NEW), open_movable(tmp_path / "new", NEW)
    os.write(new, b"new")
    replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"new"
    assert os.path.samestat(os.fstat(new), (tmp_path / "name").stat())
    assert not os.path.samestat(os.fstat(old), (tmp_path / "name").stat())
    (tmp_path / "name").unlink()
    os.close(old)
    os.close(new)


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    descriptor = open_movable(tmp_path / "file", NEW)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
