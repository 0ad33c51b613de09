"""The file of a session: what it gives back after crashes, damage, and a full disk."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.full_disk import room_for
from penstock.errors import SessionError, UsageError
from penstock.sessions.log import NewRecord, SessionLog, SessionWarning

RECORDS = [
    ("mod ", {"of": "a model"}, b""),
    ("turn", {"prompt": [1, 2, 3]}, b""),
    ("pass", {"drawn": [7]}, bytes(range(256)) * 3),
    ("pass", {"drawn": [8]}, b"\x93rec" * 50),  # what looks like the beginning of records
]


def new(kind: str, meta: dict[str, object], payload: bytes) -> NewRecord:
    return NewRecord(kind, meta, [payload[:100], payload[100:]], len(payload))


def write(path: Path, records: list[tuple[str, dict[str, object], bytes]] = RECORDS) -> list[int]:
    """The file's size after each record."""
    log, sizes = SessionLog(path), []
    for record in records:
        log.append(new(*record))
        sizes.append(log.size)
    log.close()
    return sizes


def read(path: Path) -> list[tuple[str, dict[str, object], bytes]]:
    log = SessionLog(path)
    try:
        return [(r.kind, r.meta, b"".join(log.payload(r, 64))) for r in list(log.replay())]
    finally:
        log.close()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    path = tmp_path_factory.mktemp("log") / "talk"
    sizes = write(path)
    return path.read_bytes(), sizes


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "talk")
    assert read(tmp_path / "talk") == RECORDS


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    write(tmp_path / "talk")
    assert stat.S_IMODE((tmp_path / "talk").stat().st_mode) == 0o600


def test_one_to_which_nothing_was_written_leaves_nothing(tmp_path: Path) -> None:
    SessionLog(tmp_path / "talk").close()
    assert list(tmp_path.iterdir()) == []


class TestTornTail:
    def test_at_every_byte_of_the_last_record(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        whole, sizes = content
        path = tmp_path / "talk"
        for size in range(sizes[-2] + 1, sizes[-1]):
            path.write_bytes(whole[:size])
            with pytest.warns(SessionWarning, match=r"talk: the last record is torn, and was dropped"):
                assert read(path) == RECORDS[:-1]
            assert path.stat().st_size == sizes[-2]

    def test_where_the_file_ends_before_the_last_record(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        whole, sizes = content
        (tmp_path / "talk").write_bytes(whole[: sizes[-2]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(tmp_path / "talk") == RECORDS[:-1]

    @pytest.mark.parametrize("filler", [b"\0", b"\xff"])
    def test_blocks_that_a_power_failure_left_empty(
        self, tmp_path: Path, content: tuple[bytes, list[int]], filler: bytes
    ) -> None:
        whole, sizes = content
        for kept in (0, 10, 60, 200):
            begin = sizes[-2] + kept
            (tmp_path / "talk").write_bytes(whole[:begin] + filler * (len(whole) - begin))
            with pytest.warns(SessionWarning):
                assert read(tmp_path / "talk") == RECORDS[:-1]

    def test_the_log_goes_on_where_it_was_torn(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        whole, sizes = content
        (tmp_path / "talk").write_bytes(whole[: sizes[-2] + 33])
        log = SessionLog(tmp_path / "talk")
        with pytest.warns(SessionWarning):
            assert len(list(log.replay())) == 3
        log.append(new(*RECORDS[-1]))
        log.close()
        assert (tmp_path / "talk").read_bytes() == whole

    def test_one_that_was_killed_as_it_began(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        whole, sizes = content
        for size in range(sizes[0]):
            (tmp_path / "talk").write_bytes(whole[:size])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                log = SessionLog(tmp_path / "talk")
                assert list(log.replay()) == []
            assert log.is_new
            log.append(new(*RECORDS[0]))
            log.close()
            assert (tmp_path / "talk").read_bytes() == whole[: sizes[0]]


class TestDamage:
    @given(bit=st.integers(min_value=0))
    def test_a_flipped_bit_is_never_believed(
        self, tmp_path_factory: pytest.TempPathFactory, content: tuple[bytes, list[int]], bit: int
    ) -> None:
        whole, sizes = content
        at = bit // 8 % len(whole)
        path = tmp_path_factory.mktemp("flipped") / "talk"
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if at >= sizes[-2]:
                assert read(path) == RECORDS[:-1]
            else:
                with pytest.raises(SessionError, match="talk"):
                    read(path)

    @pytest.mark.parametrize("record", [1, 2])
    def test_amid_the_file_it_is_named_with_its_offset(
        self, tmp_path: Path, content: tuple[bytes, list[int]], record: int
    ) -> None:
        whole, sizes = content
        begin = sizes[record - 1]
        for at in (0, 8, 20, 30, 36):
            damaged = bytearray(whole)
            damaged[begin + at] ^= 4
            (tmp_path / "talk").write_bytes(damaged)
            with pytest.raises(SessionError, match=rf"talk: damaged at offset {begin}; its checksum does not match"):
                read(tmp_path / "talk")
            assert (tmp_path / "talk").read_bytes() == damaged

    def test_a_record_that_is_missing(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        whole, sizes = content
        (tmp_path / "talk").write_bytes(whole[: sizes[0]] + whole[sizes[1] :])
        with pytest.raises(SessionError, match=f"damaged at offset {sizes[0]}"):
            read(tmp_path / "talk")


class TestRefusals:
    def test_another_version(self, tmp_path: Path, content: tuple[bytes, list[int]]) -> None:
        (tmp_path / "talk").write_bytes(content[0].replace(b"session 1\n", b"session 7\n", 1))
        with pytest.raises(SessionError, match="format version 7; this is a Penstock for version 1"):
            SessionLog(tmp_path / "talk")

    @pytest.mark.parametrize("other", [b"some text of somebody's\n", b"\0" * 100, b"pen"[:2] + b"!"])
    def test_another_file_is_left_alone(self, tmp_path: Path, other: bytes) -> None:
        (tmp_path / "notes").write_bytes(other)
        with pytest.raises(SessionError, match="notes is not a session"):
            SessionLog(tmp_path / "notes")
        assert (tmp_path / "notes").read_bytes() == other

    def test_a_folder_or_a_device(self, tmp_path: Path) -> None:
        for path in (tmp_path, Path("/dev/null")):
            with pytest.raises(UsageError, match="is not a file"):
                SessionLog(path)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SessionError, match="cannot be opened: No such file or directory"):
            SessionLog(tmp_path / "no" / "talk")

    def test_two_at_once(self, tmp_path: Path) -> None:
        log = SessionLog(tmp_path / "talk")
        log.append(new(*RECORDS[0]))
        with pytest.raises(SessionError, match="talk is in use by another process"):
            SessionLog(tmp_path / "talk")
        log.rewrite([new(*record) for record in RECORDS])
        code = "import sys, pathlib, penstock.sessions.log as log; log.SessionLog(pathlib.Path(sys.argv[1]))"
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "talk")], capture_output=True, text=True, check=False
        )
        assert "in use by another process" in result.stderr
        log.close()
        assert read(tmp_path / "talk") == RECORDS


class TestNoRoom:
    @pytest.mark.parametrize("more", [0, 1, 33, 100, 700])
    def test_what_was_there_stays(self, tmp_path: Path, content: tuple[bytes, list[int]], more: int) -> None:
        whole, sizes = content
        log = SessionLog(tmp_path / "talk")
        for record in RECORDS[:2]:
            log.append(new(*record))
        with room_for(sizes[1] + more), pytest.raises(SessionError, match=r"cannot be written to.*\n.*still there"):
            log.append(new(*RECORDS[2]))
        assert log.size == sizes[1]
        for record in RECORDS[2:]:  # there is room again
            log.append(new(*record))
        log.close()
        assert (tmp_path / "talk").read_bytes() == whole

    def test_as_it_is_written_anew(self, tmp_path: Path) -> None:
        log = SessionLog(tmp_path / "talk")
        for record in RECORDS:
            log.append(new(*record))
        with room_for(300), pytest.raises(SessionError, match="cannot be written to"):
            log.rewrite([new(*RECORDS[0]), new(*RECORDS[2])])
        log.append(new(*RECORDS[2]))
        log.close()
        assert read(tmp_path / "talk") == [*RECORDS, RECORDS[2]]
        assert [path.name for path in tmp_path.iterdir()] == ["talk"]

    @pytest.mark.parametrize("records", [0, 2])
    def test_where_not_even_what_was_begun_can_be_dropped(
        self, tmp_path: Path, content: tuple[bytes, list[int]], monkeypatch: pytest.MonkeyPatch, records: int
    ) -> None:
        class Stuck(FileIO):
            is_stuck = False

            def truncate(self, size: int | None = None) -> int:
                if Stuck.is_stuck:
                    raise OSError(errno.EIO, "stuck")
                return super().truncate(size)

        whole, sizes = content
        monkeypatch.setattr("penstock.sessions.log.FileIO", Stuck)
        log = SessionLog(tmp_path / "talk")
        for record in RECORDS[:records]:
            log.append(new(*record))
        Stuck.is_stuck = True
        begin = sizes[records - 1] if records else 0
        with room_for(begin + 60), pytest.raises(SessionError, match="cannot be written to"):
            log.append(new(*RECORDS[records]))
        assert log.size == begin + 60
        assert log.is_new == (records == 0)
        with pytest.raises(SessionError, match="cannot be written to"):  # rather than behind the torn one
            log.append(new(*RECORDS[records]))
        torn = (tmp_path / "talk").read_bytes()
        Stuck.is_stuck = False
        for record in RECORDS[records:]:
            log.append(new(*record))
        log.close()
        assert (tmp_path / "talk").read_bytes() == whole
        (tmp_path / "torn").write_bytes(torn)  # as it is where the process ends before it can
        with pytest.warns(SessionWarning):
            assert read(tmp_path / "torn") == RECORDS[:records]

    def test_ctrl_c_amid_a_record(self, tmp_path: Path) -> None:
        def payload() -> Iterator[bytes]:
            yield b"a" * 10
            raise KeyboardInterrupt

        log = SessionLog(tmp_path / "talk")
        log.append(new(*RECORDS[0]))
        with pytest.raises(KeyboardInterrupt):
            log.append(NewRecord("pass", {}, payload(), 20))
        log.append(new(*RECORDS[1]))
        log.close()
        assert read(tmp_path / "talk") == RECORDS[:2]


def test_rewriting_replaces_all(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "talk")
    write(tmp_path / "talk")
    log = SessionLog(link)
    assert len(list(log.replay())) == 4
    log.rewrite([new(*RECORDS[0]), new(*RECORDS[1])])
    log.append(new(*RECORDS[2]))
    log.close()
    assert read(tmp_path / "talk") == RECORDS[:3]
    assert link.is_symlink()
    assert stat.S_IMODE((tmp_path / "talk").stat().st_mode) == 0o600


@pytest.mark.parametrize("fails", [True, False], ids=["error", "end of file"])
def test_a_read_that_fails_is_no_damage(
    tmp_path: Path, content: tuple[bytes, list[int]], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Whichever is the first one: nothing is dropped, and nothing is called damaged."""

    class Failing(FileIO):
        reads, first = 0, 1000

        def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            Failing.reads += 1
            if Failing.reads < Failing.first:
                return super().read(size) or b""
            if fails:
                raise OSError(errno.EIO, "stuck")
            return b""

    whole, _ = content
    path = tmp_path / "talk"
    path.write_bytes(whole)
    monkeypatch.setattr("penstock.sessions.log.FileIO", Failing)
    assert read(path) == RECORDS
    for first in range(1, Failing.reads + 1):
        Failing.reads, Failing.first = 0, first
        with pytest.raises(SessionError, match=r"talk: reading at offset \d+ failed: .*\.\nCheck the disk"):
            read(path)
        assert path.read_bytes() == whole


def test_a_first_line_that_cannot_be_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FileIO):
        def truncate(self, size: int | None = None) -> int:
            raise OSError(errno.EIO, "stuck")

    (tmp_path / "talk").write_bytes(b"penstock")
    monkeypatch.setattr("penstock.sessions.log.FileIO", Stuck)
    with pytest.raises(SessionError, match="talk cannot be written to: Input/output error"):
        SessionLog(tmp_path / "talk")
