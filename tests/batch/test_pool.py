"""Batches on several benches: the results are the bytes of one process, whichever benches are lost on the way."""

from __future__ import annotations

import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest

from helpers.batches import ask, by_id, mixed, records, run_batch, write_requests
from helpers.bench_processes import BenchHere, BenchProcess
from helpers.thorough import quick
from penstock import LLM
from penstock.batch import sharing
from penstock.batch.bench import MOST_HELD
from penstock.batch.elsewhere import known_elsewhere
from penstock.batch.progress import Progress
from penstock.batch.results import state_path
from penstock.batch.watcher import Watcher
from penstock.checkpoints.store import find_model
from penstock.errors import CheckpointError, ClusterError, ReadError
from penstock.memory.budget import Budget
from penstock.options import OpenOptions

AT_ONCE = 4
"""So that not all requests begin together."""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


class Noting(Watcher):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.lost_ones: dict[str, str] = {}
        self.passes: list[tuple[int, tuple[str, ...]]] = []
        """At the end of each, the tokens so far and the benches at work."""

    def working(self, progress: Progress, layers: int) -> None:
        self.progress = progress

    def passed(self) -> None:
        self.passes.append((self.progress.tokens, tuple(self.progress.nodes)))

    def lost(self, name: str, reason: str) -> None:
        self.lost_ones[name] = reason


class Clock:
    """Time that goes by only while calls are waited for in vain: `step` seconds each time, so many times."""

    def __init__(self) -> None:
        self.now, self.step, self.left = 1000.0, 5.0, 1000

    def monotonic(self) -> float:
        return self.now

    def wait(self, calls: Iterable[Future[Any]], *_: object) -> tuple[set[Future[Any]], set[Future[Any]]]:
        done = {call for call in calls if call.done()}
        if not done:
            self.now, self.left = self.now + self.step, self.left - 1
            if not self.left:
                raise KeyboardInterrupt
        return done, set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sharing, "time", clock)
    monkeypatch.setattr(sharing, "wait", clock.wait)
    return clock


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of `mixed`, of one process."""
    folder = tmp_path_factory.mktemp("expected")
    run_batch(write_requests(folder / "in.jsonl", mixed()), folder / "out.jsonl", at_once=AT_ONCE)
    return (folder / "out.jsonl").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", mixed())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def here(count: int, **chosen: Any) -> list[BenchHere]:
    return [BenchHere(f"node {number}", **chosen) for number in range(count)]


def check_finished(path: Path, out: Path, expected: bytes) -> None:
    assert out.read_bytes() == expected
    assert sorted(file.name for file in out.parent.iterdir()) == [path.name, out.name]


class TestTogether:
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_bytes_are_those_of_one_process(self, path: Path, out: Path, expected: bytes, count: int) -> None:
        benches, watcher = here(count), Noting()
        summary = run_batch(path, out, watcher, lambda: benches, at_once=AT_ONCE)
        check_finished(path, out, expected)
        assert (summary.total, summary.answered, summary.failed) == (20, 14, 6)
        steps = [sum(name == "step" for name, _ in bench.calls) for bench in benches]
        assert summary.passes == len(watcher.passes) == sum(steps)
        assert min(steps) > 0
        assert {names for _, names in watcher.passes} == {tuple(bench.name for bench in benches)}
        assert [tokens for tokens, _ in watcher.passes] == sorted(tokens for tokens, _ in watcher.passes)

    @pytest.mark.parametrize("count", quick([2], [1, 2, 3]))
    def test_in_processes_of_their_own(self, path: Path, out: Path, expected: bytes, count: int) -> None:
        benches = [BenchProcess(f"node {number}") for number in range(count)]
        run_batch(path, out, None, lambda: benches, at_once=AT_ONCE)
        check_finished(path, out, expected)
        assert all("step" in bench.calls for bench in benches)

    def test_lines_are_handed_out_in_their_order_and_evenly(self, tmp_path: Path, out: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [ask(f"{n}", prompt=[n, 9], max_tokens=2) for n in range(12)])
        benches = here(3)
        run_batch(path, out, None, lambda: benches)
        begun = [told for bench in benches for name, told in bench.calls if name == "begin"]
        assert begun == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]

    def test_a_bench_without_room_leaves_lines_to_others(self, tmp_path: Path, out: Path) -> None:
        asked = [ask(f"{n}", prompt=[n, 9], max_tokens=4, ignore_eos=True) for n in range(9)]
        path = write_requests(tmp_path / "in.jsonl", asked)
        benches = here(3)
        summary = run_batch(path, out, None, lambda: benches, at_once=1)
        assert (summary.answered, summary.passes) == (9, 36)
        assert [record["custom_id"] for record in records(out)] == [f"{n}" for n in range(9)]
        assert [[name for name, _ in bench.calls].count("step") for bench in benches] == [12, 12, 12]

    def test_very_many_lines_that_are_no_requests(self, tmp_path: Path, out: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [b"?"] * (2 * MOST_HELD + 5) + [ask("a"), b"?"])
        summary = run_batch(path, out, None, lambda: here(2))
        assert (summary.answered, summary.failed) == (1, 2 * MOST_HELD + 6)
        assert len(records(out)) == summary.total

    def test_nothing_is_opened_where_nothing_is_left_to_do(self, path: Path, out: Path, expected: bytes) -> None:
        run_batch(path, out, None, lambda: here(1), at_once=AT_ONCE)

        def none() -> list[BenchHere]:
            raise AssertionError

        assert run_batch(path, out, None, none, at_once=AT_ONCE).complete_before
        check_finished(path, out, expected)


class TestMemory:
    """A request that one bench has no room for goes to the roomiest."""

    @pytest.fixture(autouse=True)
    def small_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        most_kv = Budget.most_kv

        def most(budget: Budget, sequences: int) -> int:
            return 1 << 20 if budget.ceiling == 1 << 30 else most_kv(budget, sequences)

        monkeypatch.setattr(Budget, "most_kv", most)

    def requests(self, tmp_path: Path) -> Path:
        large = {"max_tokens": 3000, "stop": "\n", "temperature": 0.9}
        return write_requests(tmp_path / "in.jsonl", [ask("a", **large), ask("b"), ask("c", **large), ask("d")])

    def test_of_two(self, tmp_path: Path, out: Path) -> None:
        path = self.requests(tmp_path)
        run_batch(path, tmp_path / "one", memory="2GiB")
        small, large = BenchHere("small", "1GiB"), BenchHere("large", "2GiB")
        assert run_batch(path, out, None, lambda: [small, large]).answered == 4
        assert out.read_bytes() == (tmp_path / "one").read_bytes()
        assert sum(name == "step" for name, _ in small.calls) > 0

    def test_where_none_has_room(self, tmp_path: Path, out: Path) -> None:
        assert run_batch(self.requests(tmp_path), out, None, lambda: here(2, memory="1GiB")).failed == 2
        assert "The least that works is" in by_id(out)["c"]["error"]["message"]


def test_what_other_machines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and whole paths, wherever the command was given; options of this machine's files too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "draft").mkdir()
    options = OpenOptions(draft="draft", adapters=("lora", "b=folder/lora"), prefix_cache="kept", memory="1GiB")
    assert known_elsewhere(options) == OpenOptions(
        draft=str(tmp_path / "draft"),
        adapters=(f"lora={tmp_path}/lora", f"b={tmp_path}/folder/lora"),
        prefix_cache=str(tmp_path / "kept"),
        memory="1GiB",
    )
    assert known_elsewhere(OpenOptions(draft="none")) == OpenOptions(draft="none")
    shutil.copytree(find_model("demo"), tmp_path / "model")
    benches = here(1)
    path = write_requests(tmp_path / "in.jsonl", [ask("a")])
    run_batch(path, tmp_path / "out.jsonl", None, lambda: benches, model="model")
    assert benches[0].opened == str(tmp_path / "model")


class TestLosses:
    def test_a_pass_that_fails(self, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that fails under one bench is no reason for the others to stop."""
        benches, watcher, step, calls = here(3), Noting(), LLM.step, [0]

        def failing(llm: LLM) -> Any:
            calls[0] += 1
            if calls[0] > 7 and llm is benches[1].bench.llm:
                raise ReadError("weights: Input/output error.", "Check the disk.")
            return step(llm)

        monkeypatch.setattr(LLM, "step", failing)
        run_batch(path, out, watcher, lambda: benches, at_once=AT_ONCE)
        check_finished(path, out, expected)
        assert watcher.lost_ones == {"node 1": "weights: Input/output error"}
        assert watcher.passes[-1][1] == ("node 0", "node 2")

    def test_an_unexpected_error(self, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        benches, watcher = here(2), Noting()
        monkeypatch.setattr(benches[0], "step", lambda: benches[0]._done("step", lambda: 1 // 0))
        run_batch(path, out, watcher, lambda: benches, at_once=AT_ONCE)
        check_finished(path, out, expected)
        assert "ZeroDivisionError" in watcher.lost_ones["node 0"]

    @pytest.mark.parametrize(
        ("hangs", "patience", "words"),
        [
            (("step", 3), None, "silent for 35 s"),  # 30, and nothing for passes that take no time
            (("begin", 1), 12.0, "silent for 15 s"),
            (("step", 1), 12.0, "silent for 15 s"),
        ],
    )
    def test_silence(
        self,
        path: Path,
        out: Path,
        expected: bytes,
        clock: Clock,
        hangs: tuple[str, int],
        patience: float | None,
        words: str,
    ) -> None:
        benches, watcher = [BenchHere("silent", hangs=hangs), *here(1)], Noting()
        run_batch(path, out, watcher, lambda: benches, at_once=AT_ONCE, patience=patience)
        check_finished(path, out, expected)
        assert watcher.lost_ones == {"silent": words}

    @pytest.mark.parametrize(("step", "patience"), [(5.0, None), (5.0, 400.0), (3600.0, 12.0)])
    def test_silence_that_is_none(
        self, path: Path, out: Path, clock: Clock, step: float, patience: float | None
    ) -> None:
        """In a first pass, within the limit, and where this process was stopped itself and heard nobody."""
        clock.step, clock.left = step, 50
        watcher = Noting()
        with pytest.raises(KeyboardInterrupt):
            run_batch(path, out, watcher, lambda: here(1, hangs=("step", 1)), at_once=AT_ONCE, patience=patience)
        assert watcher.lost_ones == {}

    def test_all(self, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        step, calls = LLM.step, [0]

        def failing(llm: LLM) -> Any:
            calls[0] += 1
            if calls[0] > 12:
                raise ReadError("weights: Input/output error.", "Check the disk.")
            return step(llm)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LLM, "step", failing)
            with pytest.raises(ClusterError) as caught:
                run_batch(path, out, None, lambda: here(2), at_once=AT_ONCE)
        assert caught.value.problem.startswith("No machine is left to answer the other requests: node ")
        assert all(f"node {number} (weights: Input/output error)" in caught.value.problem for number in (0, 1))
        assert caught.value.remedy.endswith("give the same command again: it goes on from here.")
        assert state_path(out).exists()
        run_batch(path, out, None, lambda: here(1), at_once=AT_ONCE)
        check_finished(path, out, expected)


class TestKills:
    """Of real processes, with signal 9, at random moments of random passes."""

    @pytest.mark.parametrize("kills", quick([2], [2, 20]))
    def test_at_random(self, path: Path, out: Path, expected: bytes, kills: int) -> None:
        """The same command again and again, on three benches, until so many were killed; then in this process."""
        rng, killed, calls = random.Random(kills), list[str](), list[int]()

        def kill_some(bench: BenchProcess, call: str) -> None:
            calls.append(1)
            if call in ("begin", "step") and len(killed) < kills and len(calls) > 9 and rng.random() < 0.2:
                killed.append(bench.name)
                Timer(rng.uniform(0, 0.02), bench.signal, [signal.SIGKILL]).start()

        def three() -> list[BenchProcess]:
            return [BenchProcess(f"node {number}", before=kill_some) for number in range(3)]

        while len(killed) < kills:
            with suppress(ClusterError):  # nobody was left
                run_batch(path, out, None, three, at_once=AT_ONCE)
                check_finished(path, out, expected)
                out.unlink()
        run_batch(path, out, at_once=AT_ONCE)
        check_finished(path, out, expected)

    @pytest.mark.thorough
    def test_a_process_that_is_stopped(self, path: Path, out: Path, expected: bytes) -> None:
        """As a machine that sleeps, or whose cable is gone: it neither answers nor ends."""
        watcher, calls = Noting(), [0]

        def stop(bench: BenchProcess, call: str) -> None:
            calls[0] += call == "step"
            if calls[0] == 3:
                bench.signal(signal.SIGSTOP)

        benches = [BenchProcess("sleeps", before=stop), BenchProcess("works")]
        run_batch(path, out, watcher, lambda: benches, at_once=AT_ONCE, patience=10.0)
        check_finished(path, out, expected)
        assert list(watcher.lost_ones) == ["sleeps"]


class TestUnlike:
    """Refused by name, before any line is handed out; and no state is left behind."""

    def check(self, path: Path, out: Path, other: BenchProcess, *words: str, error: type = ClusterError) -> None:
        benches = [BenchProcess("alike"), other]
        with pytest.raises(error) as caught:
            run_batch(path, out, None, lambda: benches)
        assert all(word in str(caught.value) for word in words)
        assert all("begin" not in bench.calls for bench in benches)
        assert [file.name for file in out.parent.iterdir() if file.is_file()] == [path.name]

    @pytest.fixture
    def changed(self, tmp_path: Path) -> Callable[[str, Callable[[bytearray], None]], Path]:
        """A copy of the demo model with a file that was changed."""

        def changed(name: str, change: Callable[[bytearray], None]) -> Path:
            shutil.copytree(find_model("demo"), tmp_path / "other")
            content = bytearray((tmp_path / "other" / name).read_bytes())
            change(content)
            (tmp_path / "other" / name).write_bytes(content)
            return tmp_path / "other"

        return changed

    def test_weights(self, path: Path, out: Path, changed: Any) -> None:
        def change(content: bytearray) -> None:
            begin = 8 + int.from_bytes(content[:8], "little")
            weights = np.frombuffer(content, np.uint8)[begin:]
            weights ^= 1

        [weights] = find_model("demo").glob("*.safetensors")
        other = BenchProcess("other", model=str(changed(weights.name, change)))
        self.check(path, out, other, "other has another model: ", ", and here it is ")

    @pytest.mark.thorough
    def test_a_way_to_draw(self, path: Path, out: Path, changed: Any) -> None:
        other = changed("config.json", lambda content: None)
        (other / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
        self.check(path, out, BenchProcess("other", model=str(other)), "other has another model: ")

    def test_a_version(self, path: Path, out: Path) -> None:
        other = BenchProcess("other", version="0.0.9")
        self.check(path, out, other, "other has another version of Penstock: 0.0.9, and here it is ")
        assert "open" not in other.calls

    def test_no_model(self, path: Path, out: Path) -> None:
        other = BenchProcess("other", model="no/such/model")
        self.check(path, out, other, "other: no/such/model: no such directory", error=CheckpointError)

    def test_out_of_reach(self, path: Path, out: Path, expected: bytes) -> None:
        """That is no other machine's fault."""
        watcher = Noting()

        def gone() -> BenchProcess:
            bench = BenchProcess("gone")
            bench.signal(signal.SIGKILL)
            return bench

        with pytest.raises(ClusterError, match=r"no machine that could work: gone \(its process has ended\)"):
            run_batch(path, out, None, lambda: [gone()])
        run_batch(path, out, watcher, lambda: [gone(), *here(1)], at_once=AT_ONCE)
        check_finished(path, out, expected)
        assert watcher.lost_ones == {"gone": "its process has ended"}

    def test_nobody(self, path: Path, out: Path) -> None:
        with pytest.raises(ClusterError, match="no machine that could work: none has joined"):
            run_batch(path, out, None, list)
