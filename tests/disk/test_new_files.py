from __future__ import annotations

from pathlib import Path

import pytest

from penstock.disk import new_files
from penstock.disk.new_files import new_file, settle, sync_folder, write_through


def test_a_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    with new_file(tmp_path / "x", tmp_path / "x.new") as file:
        file.write(b"content")
        assert [path.name for path in tmp_path.iterdir()] == ["x.new"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_it_replaces_what_had_the_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with new_file(tmp_path / "x", tmp_path / "x.new") as file:
        file.write(b"new")
        assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "x").read_text() == "new"


def test_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def fail() -> None:
        with new_file(tmp_path / "x", tmp_path / "x.new") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "x").read_text() == "old"


def test_long_files_are_settled_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    monkeypatch.setattr(new_files, "settle", lambda file: settled.append(file.tell()))
    with (tmp_path / "x").open("wb") as file:
        for _ in range(10):
            write_through(file, memoryview(bytes(30)), sync_bytes=100)
    assert settled == [120, 210, 300]
    assert (tmp_path / "x").stat().st_size == 300


def test_settling(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write(b"1")
        settle(file)
        assert (tmp_path / "x").read_bytes() == b"1"
    sync_folder(tmp_path)
    sync_folder(tmp_path / "missing")
