from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from helpers.batch_lines import lines, peak_of_lines
from helpers.thorough import quick
from penstock.batch.requests import Line
from penstock.batch.state import Counts, Drawn, Result, State, check_of
from penstock.errors import PenstockError, UsageError


def contents(state: State, number: int) -> list[list[str]]:
    """What was drawn for a line."""
    return [[part.content for part in parts] for parts in state.drawn(number)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.state"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    with State(path) as state:
        state.begin({"name": "a"}, lines(6))
        yield state


class TestLines:
    def test_are_to_be_done_in_their_order(self, state: State) -> None:
        assert [one.line.number for one in state.to_do(0, 4)] == [1, 2, 3, 4]
        assert [one.line.number for one in state.to_do(4, 4)] == [5, 6]
        assert state.to_do(6, 4) == []
        assert [one.first_of_id for one in state.to_do(0, 9)] == [None, None, 1, None, None, 4]
        assert state.to_do(1, 1)[0].line == next(line for line, _ in lines(6) if line.number == 2)
        assert state.longest_line() == 100

    def test_leave_once_they_have_a_result(self, state: State) -> None:
        state.commit([], [Result(2, b"two\n", False, 7), Result(5, b"five\n", True, 0)])
        assert [one.line.number for one in state.to_do(0, 9)] == [1, 3, 4, 6]
        assert state.counts() == Counts(total=6, done=2, failed=1, tokens=7)

    @pytest.mark.parametrize("count", quick([6_000], [6_000, 30_000]))
    def test_memory_does_not_grow_with_their_number(self, path: Path, count: int) -> None:
        """In a process of its own, where no other thread takes any."""
        with get_context("spawn").Pool(1) as pool:
            assert pool.apply(peak_of_lines, (path, count)) < 1 << 20


class TestTokens:
    def test_come_back_in_their_order(self, state: State) -> None:
        state.commit([Drawn(1, 0, 0, "[1]"), Drawn(1, 1, 0, "[2]"), Drawn(2, 0, 0, "[3]")], [])
        state.commit([Drawn(1, 1, 2, "[5]"), Drawn(1, 0, 1, "[4]")], [])
        assert contents(state, 1) == [["[1]", "[4]"], ["[2]", "[5]"]]
        assert contents(state, 2) == [["[3]"]]
        assert contents(state, 3) == []

    def test_of_a_later_choice_alone(self, state: State) -> None:
        state.commit([Drawn(1, 2, 0, "[1]")], [])
        assert contents(state, 1) == [[], [], ["[1]"]]

    def test_go_with_the_result(self, state: State) -> None:
        state.commit([Drawn(1, 0, 0, "[1]"), Drawn(2, 0, 0, "[3]")], [])
        state.commit([], [Result(1, b"one\n", False, 1)])
        assert contents(state, 1) == []
        assert contents(state, 2) == [["[3]"]]


class TestResults:
    def test_have_their_places(self, state: State) -> None:
        state.begin({}, lines(3))
        state.commit([], [Result(2, b"two\n", False, 7)])
        with pytest.raises(PenstockError, match=r"damaged, or no state of a batch: line 1 has no result"):
            list(state.places())
        state.commit([], [Result(3, b"three\n", False, 7), Result(1, b"one\n", True, 0)])
        checks = [check_of(record) for record in (b"one\n", b"two\n", b"three\n")]
        assert list(state.places()) == [(10, 4, checks[0]), (0, 4, checks[1]), (4, 6, checks[2])]

    def test_are_kept_until_the_next_ones_come(self, state: State) -> None:
        assert state.unwritten() == (0, [])
        state.commit([], [Result(2, b"two\n", False, 7)])
        assert state.unwritten() == (0, [b"two\n"])
        state.commit([], [Result(6, b"six\n", False, 7), Result(1, b"one\n", True, 0)])
        assert state.unwritten() == (4, [b"six\n", b"one\n"])
        state.commit([Drawn(3, 0, 0, "[1]")], [])
        assert state.unwritten() == (12, [])


class TestDurability:
    def test_all_is_there_again(self, path: Path, state: State) -> None:
        state.commit([Drawn(1, 0, 0, "[1]")], [Result(2, b"two\n", False, 7)])
        job = state.job
        state.close()
        with State(path) as again:
            assert again.job == job == {"name": "a", "format": 2, "phase": "running", "out_bytes": 4, "lines": 6}
            assert contents(again, 1) == [["[1]"]]
            assert again.has_progress
            again.set_phase("ordered")
        with State(path) as again:
            assert again.phase == "ordered"

    def test_half_a_pass_is_none(self, path: Path, state: State) -> None:
        def broken() -> Iterator[Drawn]:
            yield Drawn(1, 0, 0, "[1]")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            state.commit(broken(), [])
        assert contents(state, 1) == []
        assert not state.has_progress

    def test_a_beginning_that_was_interrupted_is_none(self, path: Path) -> None:
        def broken() -> Iterator[tuple[Line, str]]:
            yield from lines(2)
            raise KeyboardInterrupt

        with State(path) as state:
            with pytest.raises(KeyboardInterrupt):
                state.begin({}, broken())
            assert state.job is None
        with State(path) as state:
            assert state.job is None
            assert not state.has_progress
            with pytest.raises(PenstockError, match="no batch has begun there"):
                state.commit([], [])

    def test_beginning_anew(self, state: State) -> None:
        state.commit([Drawn(1, 0, 0, "[1]")], [Result(2, b"two\n", False, 7)])
        state.begin({"name": "b"}, lines(2))
        assert state.counts() == Counts(2, 0, 0, 0)
        assert state.unwritten() == (0, [])
        assert contents(state, 1) == []

    def test_each_pass_is_on_the_disk(self, state: State) -> None:
        """As a power failure would have it: SQLite syncs every transaction."""
        [(mode,)] = state._db.execute("PRAGMA journal_mode")
        [(synchronous,)] = state._db.execute("PRAGMA synchronous")
        assert (mode, synchronous) == ("wal", 2)


class TestLock:
    def test_one_process_at_a_time(self, path: Path, state: State) -> None:
        code = f"from pathlib import Path; from penstock.batch.state import State; State(Path({str(path)!r}))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "is in use: another process is working on this batch." in result.stderr
        state.close()
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_it_is_over_while_another_waits(self, path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever opened the file of a batch that then ended must not take it for one of its own."""
        connect = __import__("sqlite3").connect

        def late(*args: object, **kwargs: object) -> object:
            connection = connect(*args, **kwargs)
            connection.execute("PRAGMA schema_version")  # opens the file
            state.remove()
            return connection

        state.close()
        monkeypatch.setattr("penstock.batch.state.sqlite3.connect", late)
        with pytest.raises(UsageError, match="is in use"):
            State(path)


def test_removal_leaves_nothing(path: Path, state: State) -> None:
    state.commit([Drawn(1, 0, 0, "[1]")], [])
    state.remove()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_what_is_no_state(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PenstockError, match="is damaged, or no state of a batch"):
        State(path)
    assert path.read_bytes() == content
