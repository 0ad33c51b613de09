"""Whatever interrupts a batch, the same call goes on, and the results are those of a batch that nothing interrupted."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.batches import Ending, ask, by_id, mixed, records, run_batch, write_requests
from helpers.thorough import quick
from penstock import LLM
from penstock.batch import results, run
from penstock.batch.bench import Bench
from penstock.batch.progress import Progress
from penstock.batch.results import ResultFile, ordered_path, state_path
from penstock.batch.state import State
from penstock.checkpoints.store import find_model
from penstock.errors import MemoryCeilingError, PenstockError, UsageError
from penstock.packing.pack import pack

AT_ONCE = 4
"""So that not all requests begin together."""


class Crash(BaseException):
    """The process is no more."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, int]:
    """The results of `mixed` when nothing interrupts, and the passes and tokens that they took."""
    folder = tmp_path_factory.mktemp("expected")
    summary = run_batch(write_requests(folder / "in.jsonl", mixed()), folder / "out.jsonl", at_once=AT_ONCE)
    return (folder / "out.jsonl").read_bytes(), summary.passes, summary.drawn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", mixed())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def check_finished(path: Path, out: Path, expected: tuple[bytes, int, int]) -> None:
    assert out.read_bytes() == expected[0]
    assert sorted(file.name for file in out.parent.iterdir()) == [path.name, out.name]


class TestGoingOn:
    @pytest.mark.parametrize("every", quick([30], [7, 30]))
    def test_nothing_is_done_twice(self, path: Path, out: Path, expected: tuple[bytes, int, int], every: int) -> None:
        """Ended after every so many passes, over and over: no pass and no token more than without."""
        ends, passes, drawn = 0, 0, 0
        counts: list[tuple[int, int]] = []

        class Counting(Ending):
            progress: Progress

            def working(self, progress: Progress, layers: int) -> None:
                self.progress = progress

            def layer(self, index: int) -> None:
                assert self.progress.tokens >= (counts[-1][1] if counts else 0), "of requests that go on"

        while True:
            watcher = Counting(every, Crash)
            try:
                summary = run_batch(path, out, watcher, at_once=AT_ONCE)
                passes, drawn = passes + summary.passes, drawn + summary.drawn
                break
            except Crash:
                ends += 1
                counts.append((watcher.progress.done, watcher.progress.tokens))
                passes, drawn = passes + watcher.progress.passes, drawn + watcher.progress.drawn
        check_finished(path, out, expected)
        assert (passes, drawn) == expected[1:]
        assert ends == pytest.approx(expected[1] / every, abs=2)
        assert counts == sorted(counts)

    @pytest.mark.thorough
    def test_with_guesses_other_memory_threads_and_width(
        self, path: Path, out: Path, expected: tuple[bytes, int, int]
    ) -> None:
        for others in ({"draft": None}, {"threads": 2}, {"memory": "1GiB"}, {"at_once": 2}, {"at_once": 9}):
            with pytest.raises(Crash):
                run_batch(path, out, Ending(3, Crash), **({"at_once": AT_ONCE} | others))
        run_batch(path, out, draft=None)
        check_finished(path, out, expected)

    @pytest.mark.thorough
    def test_the_name_of_the_model_and_the_time_stay(
        self, path: Path, out: Path, expected: tuple[bytes, int, int], tmp_path: Path
    ) -> None:
        with pytest.raises(Crash):
            run_batch(path, out, Ending(5, Crash), at_once=AT_ONCE)
        os.utime(path)
        same = Path(run.LLM.open("demo").path)
        run_batch(path, out, at_once=AT_ONCE, model=str(same.parent / "." / "demo"))
        assert {r["response"]["body"].get("created") for r in records(out) if not r["error"]} == {1_700_000_000}
        check_finished(path, out, expected)

    def test_the_requests_may_have_moved(self, path: Path, out: Path, expected: tuple[bytes, int, int]) -> None:
        with pytest.raises(Crash):
            run_batch(path, out, Ending(5, Crash), at_once=AT_ONCE)
        path = path.rename(path.with_name("moved"))
        run_batch(path, out)
        assert out.read_bytes() == expected[0]


def crash_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The process ends before the call of this number, from 1."""
    real, calls = getattr(owner, name), [0]

    def crash(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Crash
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, crash)


class TestCrashes:
    @pytest.mark.parametrize(
        ("owner", "name", "call"),
        quick(
            3,
            [
                (State, "commit", 1),
                (ResultFile, "append", 4),
                (Bench, "_pass", 6),
                (results, "write_through", 5),
                (State, "remove", 1),
                (State, "begin", 1),
                (State, "_add", 7),
                (run, "_open", 1),
                (State, "commit", 2),
                (State, "_take", 3),
                (ResultFile, "append", 9),
                (run, "_finish", 1),
                (run, "write_in_order", 1),
                (results, "settle", 1),
                (State, "set_phase", 1),
                (run, "put_in_order", 1),
                (results, "give_name", 1),
            ],
        ),
    )
    def test_between_any_two_steps(
        self, owner: Any, name: str, call: int, path: Path, out: Path, expected: tuple[bytes, int, int]
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            crash_before(patch, owner, name, call)
            with pytest.raises(Crash):
                run_batch(path, out, at_once=AT_ONCE)
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    @pytest.mark.parametrize("kept", quick([0.3], [0.0, 0.3, 1.0]))
    def test_amid_a_result(self, path: Path, out: Path, expected: tuple[bytes, int, int], kept: float) -> None:
        write, calls = os.write, [0]

        def torn(descriptor: int, data: memoryview) -> int:
            calls[0] += 1
            if calls[0] == 5:
                write(descriptor, data[: int(kept * len(data))])
                raise Crash
            return write(descriptor, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results.os, "write", torn)
            with pytest.raises(Crash):
                run_batch(path, out, at_once=AT_ONCE)
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    def test_what_a_power_failure_leaves_behind_the_results(
        self, path: Path, out: Path, expected: tuple[bytes, int, int]
    ) -> None:
        for tail in (b"{", b"\0" * 5000, b'{"id": "batch_req_0"}\n'):
            with pytest.raises(Crash):
                run_batch(path, out, Ending(6, Crash), at_once=AT_ONCE)
            with out.open("ab") as file:
                file.write(tail)
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    @pytest.mark.thorough
    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
    def test_kill_9(self, path: Path, out: Path, expected: tuple[bytes, int, int]) -> None:
        """Six at random moments of one batch; what they did not reach is done by the last call."""
        rng = random.Random(0)
        paths = [str(path), str(out)]
        code = f"from helpers.batches import run_batch; run_batch(*map(__import__('pathlib').Path, {paths}), "
        command = [sys.executable, "-c", code + f"at_once={AT_ONCE})"]
        for _ in range(6):
            with subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE) as process:
                while process.poll() is None and not state_path(out).exists():
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.8))
                process.kill()
                assert process.communicate()[1] == b""
            assert process.returncode in (0, -signal.SIGKILL)
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)


class TestFullDisk:
    def check(self, path: Path, out: Path, words: str) -> None:
        with pytest.raises(PenstockError) as caught:
            run_batch(path, out, at_once=AT_ONCE)
        assert words in caught.value.problem
        assert caught.value.remedy.endswith("give the same command again: it goes on from here.")
        assert not isinstance(caught.value, UsageError)

    def test_amid_the_results(
        self, path: Path, out: Path, expected: tuple[bytes, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, room = os.write, [3000]

        def full(descriptor: int, data: memoryview) -> int:
            count = min(len(data), room[0], 100)
            if not count:
                raise OSError(errno.ENOSPC, "No space left on device")
            room[0] -= count
            return write(descriptor, data[:count])

        monkeypatch.setattr(results.os, "write", full)
        self.check(path, out, f"{out} cannot be written: No space left on device.")
        assert out.stat().st_size == 3000
        room[0] = 1 << 20
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    def test_amid_the_state(self, path: Path, out: Path) -> None:
        write_requests(path, [ask("large", logprobs=5, max_tokens=40), ask("small", max_tokens=30)])
        with pytest.raises(Crash):
            run_batch(path, out, Ending(1, Crash))
        set_up = State._set_up

        def small(state: State) -> None:
            set_up(state)
            state._db.execute("VACUUM")
            pages = state._db.execute("PRAGMA page_count").fetchone()[0]
            state._db.execute(f"PRAGMA max_page_count={pages}")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(State, "_set_up", small)
            self.check(path, out, f"{state_path(out)} cannot be read or written: database or disk is full.")
        run_batch(path, out)
        run_batch(path, out.with_name("other"))
        assert out.read_bytes() == out.with_name("other").read_bytes()

    @pytest.mark.thorough
    def test_while_the_results_are_put_in_order(self, path: Path, out: Path, expected: tuple[bytes, int, int]) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results, "write_through", full)
            self.check(path, out, f"{ordered_path(out)} cannot be written: No space left on device.")
        assert len(records(out)) == 20
        summary = run_batch(path, out, at_once=AT_ONCE)
        assert (summary.complete_before, summary.passes) == (True, 0)
        check_finished(path, out, expected)


class TestRefusals:
    @pytest.fixture(scope="class")
    def stopped(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The results of a batch that was interrupted, beside its state."""
        folder = tmp_path_factory.mktemp("stopped")
        with pytest.raises(Crash):
            run_batch(
                write_requests(folder / "in.jsonl", mixed()),
                folder / "out.jsonl",
                Ending(16, Crash),
                at_once=AT_ONCE,
            )
        return folder / "out.jsonl"

    @pytest.fixture(autouse=True)
    def interrupted(self, stopped: Path, path: Path, out: Path) -> None:
        """That batch, for a test of its own."""
        shutil.copy(stopped, out)
        shutil.copy(state_path(stopped), state_path(out))

    @pytest.fixture
    def refused(self, path: Path, out: Path, expected: tuple[bytes, int, int]) -> Callable[..., str]:
        """What is said to another call, which changes nothing: the first one goes on all the same."""

        def refused(requests: Path = path, **settings: Any) -> str:
            before = {file: file.read_bytes() for file in (out, state_path(out))}
            with pytest.raises(UsageError) as caught:
                run_batch(requests, out, **settings)
            assert {file: file.read_bytes() for file in before} == before
            return str(caught.value)

        return refused

    def test_other_options(
        self, refused: Callable[..., str], path: Path, out: Path, expected: tuple[bytes, int, int]
    ) -> None:
        problem = "The interrupted batch was begun with --kv-dtype bf16, not --kv-dtype f32.\n"
        assert refused(kv_dtype="f32").startswith(problem)
        assert "begun with --max-tokens 40, not --max-tokens 41." in refused(max_tokens=41)
        assert "begun with no --context, not --context 300." in refused(context=300)
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    def test_other_requests(self, refused: Callable[..., str], stopped: Path, path: Path, out: Path) -> None:
        data, begun = path.read_bytes(), stopped.with_name(path.name)
        path.write_bytes(data + b"\n")
        said = refused()
        assert said.startswith(f"The requests are not those that the interrupted batch began with ({begun}).\n")
        assert "Go on with what it was begun with" in said
        run_batch(path, out, overwrite=True)
        assert len(records(out)) == 20

    def test_another_model(self, refused: Callable[..., str], tmp_path: Path, path: Path) -> None:
        with LLM.open("demo") as llm:
            shutil.copytree(llm.path, tmp_path / "other")
        (tmp_path / "other" / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
        assert "was begun with another model, or other adapters (demo)" in refused(model=str(tmp_path / "other"))

    def test_a_packed_copy_is_no_other_model(
        self, path: Path, out: Path, expected: tuple[bytes, int, int], tmp_path: Path
    ) -> None:
        packed = tmp_path / "copies" / "packed"
        pack(find_model("demo"), packed)
        run_batch(path, out, model=str(packed), at_once=AT_ONCE)
        assert out.read_bytes() == expected[0]

    def test_another_process(
        self, refused: Callable[..., str], path: Path, out: Path, expected: tuple[bytes, int, int]
    ) -> None:
        with State(state_path(out)):
            assert refused() == (
                f"{state_path(out)} is in use: another process is working on this batch.\n"
                "Let it finish, or end it first."
            )
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    def test_results_that_have_shrunk(self, path: Path, out: Path) -> None:
        os.truncate(out, 10)
        with pytest.raises(PenstockError, match="has 10 bytes, but "):
            run_batch(path, out)

    def test_results_that_were_changed(self, path: Path, out: Path) -> None:
        size = out.stat().st_size
        out.write_bytes(b"x" * size)
        with pytest.raises(PenstockError, match="is not what was written to it"):
            run_batch(path, out)

    def test_a_damaged_state(self, path: Path, out: Path) -> None:
        state_path(out).write_bytes(b"no database" * 1000)
        with pytest.raises(PenstockError, match="is damaged, or no state of a batch"):
            run_batch(path, out)

    def test_less_memory_than_a_request_began_with(self, path: Path, out: Path) -> None:
        """It is not failed, and what was drawn for it is not lost."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("penstock.memory.budget.Budget.most_kv", lambda self, sequences: 0)
            with pytest.raises(MemoryCeilingError):
                run_batch(path, out)
        run_batch(path, out)
        assert by_id(out)["greedy"]["error"] is None


def test_requests_that_change_while_they_are_worked_on(path: Path, out: Path) -> None:
    class Changing(Ending):
        def passed(self) -> None:
            path.write_bytes(path.read_bytes().replace(b"for i in", b"for j in"))

    with pytest.raises(PenstockError, match="was changed while it was being worked on: line 20 is another one now"):
        run_batch(path, out, Changing(0, Crash), at_once=AT_ONCE)


def test_another_batch_that_has_not_got_anywhere_is_forgotten(path: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash_before(patch, State, "remove", 1)
        crash_before(patch, run, "_open", 1)
        with pytest.raises(Crash):
            run_batch(path, out, max_tokens=3)
    assert state_path(out).exists()
    assert run_batch(path, out).answered == 14
