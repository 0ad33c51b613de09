"""A folder of blocks: what is read back is what was written, under a limit, whatever else lies there."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.full_disk import room_for
from penstock.compute.kernels import U8
from penstock.prefix_cache import folder as folder_module
from penstock.prefix_cache.block_file import file_bytes
from penstock.prefix_cache.folder import SUBFOLDER, BlockFolder

BYTES = 6000
SIZE = file_bytes(BYTES)
posix = pytest.mark.skipif(os.name != "posix", reason=f"{sys.platform} has none of these")


def keys(count: int, prompt: int = 0) -> list[bytes]:
    return [sha256(f"{prompt} {index}".encode()).digest() for index in range(count)]


def block(key: bytes) -> U8:
    return np.random.default_rng(list(key)).integers(0, 256, BYTES, np.uint8)


def keep(folder: BlockFolder, wanted: Sequence[bytes]) -> None:
    folder.keep(wanted, lambda index: np.split(block(wanted[index]), 3))


def has(folder: BlockFolder, wanted: Sequence[bytes]) -> str:
    """Of each, 1 where it is there, sound and what was written."""
    out = np.empty(BYTES, np.uint8)
    return "".join(str(int(folder.has(k) and folder.read(k, out) and np.array_equal(out, block(k)))) for k in wanted)


def used(folder: BlockFolder) -> int:
    return sum(path.stat().st_size for path in folder.path.iterdir())


def place(folder: BlockFolder, key: bytes) -> Path:
    return folder.path / f"{key.hex()}.kv"


@pytest.fixture
def folder(tmp_path: Path) -> BlockFolder:
    return BlockFolder(tmp_path / "cache", 10 * SIZE, BYTES)


def test_what_is_kept_is_read_back(folder: BlockFolder) -> None:
    wanted = keys(4)
    assert has(folder, wanted) == "0000"
    keep(folder, wanted)
    assert has(folder, wanted) == "1111"
    assert has(BlockFolder(folder.path.parent, 4 * SIZE, BYTES), wanted) == "1111"
    assert not BlockFolder(folder.path.parent, 4 * SIZE, BYTES + 1).has(wanted[0])


def test_what_is_there_is_not_written_again(folder: BlockFolder) -> None:
    keep(folder, keys(3))
    asked: list[int] = []
    folder.keep(keys(5), lambda index: asked.append(index) or [block(keys(5)[index])])  # type: ignore[func-returns-value]
    assert asked == [3, 4]


@posix
def test_only_the_user_can_read_it(folder: BlockFolder) -> None:
    keep(folder, keys(1))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.path.parent, folder.path, place(folder, keys(1)[0]))]
    assert modes == [0o700, 0o700, 0o600]
    folder.path.chmod(0o755)
    keep(folder, keys(1))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


@pytest.mark.parametrize("bit", [0, 17 * 8, 20 * 8 + 1, 33 * 8, 64 * 8, 64 * 8 + 12345, 8 * (SIZE - 8), 8 * SIZE - 1])
def test_a_flipped_bit_anywhere(folder: BlockFolder, bit: int, caplog: pytest.LogCaptureFixture) -> None:
    keep(folder, keys(3))
    path = place(folder, keys(3)[1])
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert has(folder, keys(3)) == "101"
    assert not path.exists()
    assert caplog.messages == [f"{path} is damaged; it is dropped, and computed again."]
    keep(folder, keys(3))
    assert has(folder, keys(3)) == "111"


def test_damage_is_told_once(folder: BlockFolder, caplog: pytest.LogCaptureFixture) -> None:
    keep(folder, keys(3))
    for key in keys(3):
        place(folder, key).write_bytes(bytes(SIZE))
    assert has(folder, keys(3)) == "000"
    assert len(caplog.messages) == 1


def test_a_sound_file_that_cannot_be_opened_now_stays(
    folder: BlockFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(folder, keys(1))

    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        assert not folder.read(keys(1)[0], np.empty(BYTES, np.uint8))
    assert "cannot be read (Too many open files); it is computed again." in caplog.text
    assert has(folder, keys(1)) == "1"


def other_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_name(path: Path) -> None:
    path.write_bytes(place_of(path, 2).read_bytes())


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to(place_of(path, 2))


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent.parent / "nowhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def place_of(path: Path, index: int) -> Path:
    return path.with_name(f"{keys(3)[index].hex()}.kv")


@posix
@pytest.mark.parametrize("change", [other_length, empty, of_another_name, link, link_to_nowhere, directory, pipe, huge])
def test_what_is_not_ours_is_not_believed_and_gives_way(folder: BlockFolder, change: Callable[[Path], None]) -> None:
    keep(folder, keys(3))
    change(place(folder, keys(3)[1]))
    out = np.empty(BYTES, np.uint8)
    assert not (folder.has(keys(3)[1]) and folder.read(keys(3)[1], out))
    keep(folder, keys(3))
    assert has(folder, keys(3)) == "111"
    assert not (folder.path.parent / "nowhere").exists()


@posix
@pytest.mark.parametrize("change", [link, directory, pipe, huge])
def test_reading_what_was_put_there_since_it_was_looked_for(
    folder: BlockFolder, change: Callable[[Path], None]
) -> None:
    keep(folder, keys(3))
    change(place(folder, keys(3)[1]))
    assert not folder.read(keys(3)[1], np.empty(BYTES, np.uint8))
    assert not folder.read(keys(4)[3], np.empty(BYTES, np.uint8))


@posix
def test_a_directory_with_something_in_it_stays(folder: BlockFolder, caplog: pytest.LogCaptureFixture) -> None:
    mine = place(folder, keys(2)[1]) / "mine"
    mine.mkdir(parents=True)
    keep(folder, keys(2))
    assert has(folder, keys(2)) == "10"
    assert mine.exists()
    assert "cannot be written: Directory not empty. Answers go on without it." in caplog.text
    assert not list(folder.path.glob("*.new"))


class TestLimit:
    def test_what_was_not_used_for_longest_goes_first(self, folder: BlockFolder) -> None:
        for prompt in range(3):
            keep(folder, keys(3, prompt))
        folder.touch(keys(3, 0))
        keep(folder, keys(3, 3))
        assert [has(folder, keys(3, prompt)) for prompt in range(4)] == ["111", "100", "111", "111"]
        assert used(folder) <= folder.most_bytes

    def test_a_prompt_counts_as_used_where_all_of_it_is_there(self, folder: BlockFolder) -> None:
        for prompt in range(3):
            keep(folder, keys(3, prompt))
        keep(folder, keys(3, 0))
        keep(folder, keys(4, 3))
        assert [has(folder, keys(3, prompt)) for prompt in range(3)] == ["111", "000", "111"]

    def test_the_first_blocks_of_what_is_too_long(self, folder: BlockFolder) -> None:
        keep(folder, keys(2, 0))
        keep(folder, keys(13, 1))
        assert has(folder, keys(13, 1)) == 10 * "1" + "000"
        assert has(folder, keys(2, 0)) == "00"
        assert used(folder) <= folder.most_bytes

    def test_what_is_too_long_in_several_passes(self, folder: BlockFolder) -> None:
        """Later passes don't take the room of earlier ones, nor, where these had none left, that of others."""
        for count in (4, 8, 13):
            keep(folder, keys(13, 1)[:count])
        assert has(folder, keys(13, 1)) == 10 * "1" + "000"
        assert used(folder) <= folder.most_bytes

    def test_of_a_prompt_in_several_passes_the_end_goes_first(self, folder: BlockFolder) -> None:
        for count in (3, 6):
            keep(folder, keys(count, 1))
        keep(folder, keys(6, 2))
        assert [has(folder, keys(6, 1)), has(folder, keys(6, 2))] == ["111100", "111111"]

    def test_the_end_of_another_limit_gives_way_to_what_comes_before_it(self, folder: BlockFolder) -> None:
        larger = BlockFolder(folder.path.parent, 20 * SIZE, BYTES)
        keep(larger, keys(15))
        for key in keys(5):
            place(folder, key).unlink()
        keep(folder, keys(15))
        assert has(folder, keys(15)) == 10 * "1" + 5 * "0"

    def test_a_limit_that_was_lowered(self, folder: BlockFolder) -> None:
        keep(folder, keys(9))
        BlockFolder(folder.path.parent, 4 * SIZE, BYTES)
        assert has(folder, keys(9)) == "111100000"

    def test_a_limit_below_a_block(self, tmp_path: Path) -> None:
        folder = BlockFolder(tmp_path, SIZE - 1, BYTES)
        keep(folder, keys(2))
        assert has(folder, keys(2)) == "00"

    def test_junk_and_what_comes_from_the_future_goes_first(self, folder: BlockFolder) -> None:
        keep(folder, keys(6, 0))
        keep(folder, keys(2, 1))
        future = 1 << 40
        os.utime(place(folder, keys(2, 1)[0]), (future, future))
        huge(place(folder, keys(2, 1)[1]))
        keep(folder, keys(3, 2))
        assert [has(folder, keys(6, 0)), has(folder, keys(2, 1)), has(folder, keys(3, 2))] == ["111111", "00", "111"]

    def test_what_others_use_while_room_is_looked_for_is_not_from_the_future(
        self, folder: BlockFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(folder, keys(3, 0))
        keep(folder, keys(6, 1))
        scan = os.scandir

        def used_meanwhile(path: Path) -> Any:
            folder.touch(keys(3, 0))
            return scan(path)

        monkeypatch.setattr(os, "scandir", used_meanwhile)
        keep(folder, keys(4, 2))
        assert [has(folder, keys(3, 0)), has(folder, keys(6, 1)), has(folder, keys(4, 2))] == ["111", "111000", "1111"]

    def test_other_files_are_left_alone(self, folder: BlockFolder) -> None:
        others = [folder.path / "thesis.txt", folder.path.parent / "thesis.txt", folder.path / "ab.kv"]
        for other in others:
            other.write_bytes(bytes(12 * SIZE))
        keep(folder, keys(9, 0))
        keep(folder, keys(9, 1))
        assert all(other.exists() for other in others)
        assert has(folder, keys(9, 1)) == 9 * "1"

    def test_what_a_killed_writer_left_goes(self, folder: BlockFolder) -> None:
        left = folder.path / f"{keys(1)[0].hex()}.4711.new"
        left.write_bytes(b"half")
        keep(folder, keys(1))
        assert not left.exists()


class TestFaults:
    def test_a_full_disk(self, folder: BlockFolder, caplog: pytest.LogCaptureFixture) -> None:
        with room_for(SIZE - 1):
            keep(folder, keys(2))
            keep(folder, keys(2))
        assert list(folder.path.iterdir()) == []
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"The prefix cache in {folder.path} cannot be written: File too large." in caplog.text
        keep(folder, keys(2))
        assert has(folder, keys(2)) == "11"

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "cache").write_text("mine")
        folder = BlockFolder(tmp_path / "cache", 10 * SIZE, BYTES)
        keep(folder, keys(2))
        assert has(folder, keys(2)) == "00"
        [message] = caplog.messages
        assert message == f"The prefix cache in {folder.path} cannot be used: File exists. Answers go on without it."
        assert (tmp_path / "cache").read_text() == "mine"

    @posix
    def test_a_link_in_place_of_the_folder(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / SUBFOLDER).symlink_to(tmp_path / "elsewhere")
        folder = BlockFolder(tmp_path, 10 * SIZE, BYTES)
        keep(folder, keys(2))
        assert "cannot be used: Not a directory" in caplog.text
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @posix
    def test_the_folder_of_another_user(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(BlockFolder(tmp_path, 10 * SIZE, BYTES), keys(2))
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        folder = BlockFolder(tmp_path, 10 * SIZE, BYTES)
        assert has(folder, keys(2)) == "00"
        assert "cannot be used: it belongs to another user" in caplog.text

    def test_a_folder_that_goes_and_comes_back(self, folder: BlockFolder) -> None:
        keep(folder, keys(2))
        for path in folder.path.iterdir():
            path.unlink()
        folder.path.rmdir()
        assert has(folder, keys(2)) == "00"
        keep(folder, keys(2))
        assert has(folder, keys(2)) == "11"

    @posix
    def test_another_writer_that_does_not_end(
        self, folder: BlockFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folder_module, "LOCK_SECONDS", 0.05)
        with folder._locked():
            keep(folder, keys(1))
        assert has(folder, keys(1)) == "0"
        assert "cannot be written: other processes are writing there." in caplog.text

    def test_it_is_waited_for_once(self, folder: BlockFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        looks: list[int] = []
        monkeypatch.setattr(folder_module, "LOCK_SECONDS", 0.05)
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "lock", looks.append)  # never had
            keep(folder, keys(1))
            assert len(looks) > 1
            looks.clear()
            for count in (2, 3):
                keep(folder, keys(count))
        assert len(looks) == 2
        keep(folder, keys(3))
        assert has(folder, keys(3)) == "111"


class TestTurns:
    """What is long is written in runs, with others between them."""

    @pytest.fixture
    def between(self, folder: BlockFolder, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
        """What happens between two runs, the first one first."""
        coming: list[Callable[[], object]] = []
        monkeypatch.setattr(folder_module, "RUN_BYTES", 2 * SIZE)
        monkeypatch.setattr(folder_module.time, "sleep", lambda _: coming.pop(0)() if coming else None)
        return coming

    def test_others_come_to_write(self, folder: BlockFolder, between: list[Callable[[], object]]) -> None:
        other = BlockFolder(folder.path.parent, folder.most_bytes, BYTES)
        between.append(lambda: keep(other, keys(2, 1)))
        keep(folder, keys(8))
        assert [has(folder, keys(8)), has(folder, keys(2, 1))] == [8 * "1", "11"]
        between.append(lambda: keep(other, keys(4, 2)))
        keep(folder, keys(8, 3))
        assert has(folder, keys(8, 3)) == 8 * "1"
        assert used(folder) == folder.most_bytes

    def test_what_another_has_written_meanwhile_is_there(
        self, folder: BlockFolder, between: list[Callable[[], object]]
    ) -> None:
        asked: list[int] = []

        def parts(index: int) -> list[U8]:
            asked.append(index)
            return [block(keys(6)[index])]

        between.append(lambda: keep(BlockFolder(folder.path.parent, folder.most_bytes, BYTES), keys(6)))
        folder.keep(keys(6), parts)
        assert asked == [0, 1]
        assert has(folder, keys(6)) == "111111"

    def test_where_its_first_blocks_are_gone_the_next_are_of_no_use(
        self, folder: BlockFolder, between: list[Callable[[], object]]
    ) -> None:
        between.append(place(folder, keys(1)[0]).unlink)
        keep(folder, keys(6))
        assert has(folder, keys(6)) == "010000"
        keep(folder, keys(6))
        assert has(folder, keys(6)) == "111111"
