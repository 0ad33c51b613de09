"""Batches on the machines of a Ray cluster: the bytes of one process, also where machines and processes are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from helpers.batches import mixed, run_batch, write_requests
from helpers.thorough import quick
from penstock.batch.machines import cluster_benches
from penstock.batch.progress import Progress
from penstock.batch.watcher import Watcher
from penstock.errors import ClusterError

from .conftest import MACHINE_MIB, add_machine

ray = pytest.importorskip("ray")
from penstock.batch import bench_actor  # noqa: E402 - imports Ray
from penstock.batch.bench_actor import RayBench  # noqa: E402

AT_ONCE = 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The results of `mixed`, of one process that may take as much as those of the machines."""
    folder = tmp_path_factory.mktemp("expected")
    path = write_requests(folder / "in.jsonl", mixed())
    # This process may have other libraries in its memory.
    job = f"from helpers.batches import *; run_batch(Path({str(path)!r}), Path({str(folder / 'out.jsonl')!r}), "
    job += f"at_once={AT_ONCE}, memory='{MACHINE_MIB}MiB')"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", job], check=True, env=environment)
    return (folder / "out.jsonl").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", mixed())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


class Doing(Watcher):
    """Does things at the end of passes, by their number; notes who was lost."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.at, self.passes = at or {}, 0
        self.lost_ones: dict[str, str] = {}

    def working(self, progress: Progress, layers: int) -> None:
        self.names = list(progress.nodes)

    def passed(self) -> None:
        self.passes += 1
        self.at.get(self.passes, lambda: None)()

    def lost(self, name: str, reason: str) -> None:
        self.lost_ones[name] = reason


def process_of(bench: RayBench) -> int:
    return int(ray.get(bench._actor.__ray_call__.remote(lambda _: os.getpid())))


class Benches:
    """Makes those of a cluster, and remembers them."""

    def __init__(self, machines: Any) -> None:
        self._machines = machines
        self._made: dict[str, RayBench] = {}

    def __call__(self) -> Sequence[RayBench]:
        self._made = {bench.name: bench for bench in cluster_benches(self._machines.address)}
        return [*self._made.values()]

    def before_step(
        self, name: str, number: int, act: Callable[[], None], patch: pytest.MonkeyPatch
    ) -> Callable[[], Sequence[RayBench]]:
        """Makes them, and does something before a step of one, by its number: so it has work to do then."""

        def make() -> Sequence[RayBench]:
            made = self()
            bench = self._made[name]
            step, steps = bench.step, count(1)

            def stepped() -> Any:
                if next(steps) == number:
                    act()
                return step()

            patch.setattr(bench, "step", stepped)
            return made

        return make

    def signal(self, name: str, number: signal.Signals) -> Callable[[], None]:
        """What sends the process of one a signal."""
        return lambda: os.kill(process_of(self._made[name]), number)


def check_finished(path: Path, out: Path, expected: bytes) -> None:
    assert out.read_bytes() == expected
    assert sorted(file.name for file in out.parent.iterdir()) == [path.name, out.name]


def test_the_bytes_of_one_machine(machines: Any, path: Path, out: Path, expected: bytes) -> None:
    watcher = Doing()
    summary = run_batch(path, out, watcher, Benches(machines), at_once=AT_ONCE)
    check_finished(path, out, expected)
    assert (watcher.names, watcher.lost_ones) == (["one", "two"], {})
    assert summary.passes == watcher.passes


def test_a_process_that_is_killed(
    machines: Any, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches, watcher = Benches(machines), Doing()
    kill = benches.before_step("two", 3, benches.signal("two", signal.SIGKILL), monkeypatch)
    run_batch(path, out, watcher, kill, at_once=AT_ONCE)
    check_finished(path, out, expected)
    assert list(watcher.lost_ones) == ["two"]


@pytest.mark.thorough
def test_a_process_that_is_stopped(
    machines: Any, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches, watcher = Benches(machines), Doing()
    stop = benches.before_step("one", 3, benches.signal("one", signal.SIGSTOP), monkeypatch)
    run_batch(path, out, watcher, stop, at_once=AT_ONCE, patience=10.0)
    check_finished(path, out, expected)
    assert list(watcher.lost_ones) == ["one"]


def test_a_machine_that_is_gone(
    machines: Any, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    third, watcher = add_machine(machines, "three"), Doing()
    remove = partial(machines.remove_node, third, allow_graceful=False)
    run_batch(path, out, watcher, Benches(machines).before_step("three", 2, remove, monkeypatch), at_once=AT_ONCE)
    check_finished(path, out, expected)
    assert watcher.names == ["one", "three", "two"]
    assert list(watcher.lost_ones) == ["three"]


@pytest.mark.parametrize("kills", quick([2], [2, 10]))
def test_all_are_killed_and_the_command_given_again(
    machines: Any, path: Path, out: Path, expected: bytes, kills: int
) -> None:
    rng = random.Random(kills)
    for _ in range(kills // 2):
        benches = Benches(machines)
        at = rng.sample(range(1, 9), 2)
        watcher = Doing({at[0]: benches.signal("one", signal.SIGKILL), at[1]: benches.signal("two", signal.SIGKILL)})
        with pytest.raises(ClusterError, match="No machine is left to answer the other requests: "):
            run_batch(path, out, watcher, benches, at_once=AT_ONCE)
    run_batch(path, out, None, Benches(machines), at_once=AT_ONCE)
    check_finished(path, out, expected)


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> str:
    """Of Penstock here, which no other machine has."""
    monkeypatch.setattr("penstock.batch.pool.__version__", "0.0.9")
    return "0.0.9"


def test_another_version(machines: Any, path: Path, out: Path, version: str) -> None:
    with pytest.raises(ClusterError, match=f"one has another version of Penstock: .*, and here it is {version}"):
        run_batch(path, out, None, Benches(machines))
    assert [file.name for file in out.parent.iterdir()] == [path.name]


def test_the_command(machines: Any, token: Path, path: Path, out: Path, expected: bytes) -> None:
    """In a process of its own, where nothing has told Ray anything yet."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    command = [sys.executable, "-m", "penstock", "batch", "demo", str(path), str(out), "--draft", "none"]
    options = ["--cluster", machines.address, "--at-once", "4", "--max-tokens", "40", "--threads", "1"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)
    assert "2 machines at work (one, two)" in result.stderr
    assert result.returncode == 1  # some requests are errors
    check_finished(path, out, expected)


def test_a_ceiling(machines: Any) -> None:
    """The machine's own, or a lower one that is asked for."""
    from penstock.batch.elsewhere import Opening
    from penstock.options import OpenOptions

    asked: list[Any] = []
    [bench, other] = cluster_benches(machines.address)
    try:
        bench._call = lambda name, opening: asked.append(opening.options.memory)  # type: ignore[method-assign]
        for memory in (None, "300MiB", "2GiB"):
            bench.open(Opening("demo", OpenOptions(memory=memory), 0, None))  # type: ignore[arg-type]
        assert asked == [MACHINE_MIB << 20, 300 << 20, MACHINE_MIB << 20]
    finally:
        bench.close()
        other.close()


@pytest.mark.thorough
def test_a_process_that_is_stopped_in_its_first_pass(
    machines: Any, path: Path, out: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a first pass takes nobody knows, but a process that works says how far it is."""
    monkeypatch.setattr(bench_actor, "ANSWER_SECONDS", 5.0)
    benches = Benches(machines)
    stopped = benches.before_step("one", 1, benches.signal("one", signal.SIGSTOP), monkeypatch)
    watcher = Doing()
    run_batch(path, out, watcher, stopped, at_once=AT_ONCE)
    check_finished(path, out, expected)
    assert watcher.lost_ones == {"one": "its process does not say anything any more"}
