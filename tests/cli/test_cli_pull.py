from __future__ import annotations

import io
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from helpers.hub_server import TOKEN, Hub, Repo, directory_files, serve
from helpers.pulling import REPO, contents, start, write_model
from penstock.cli.pull_bar import PullBar
from penstock.packing.pack import pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with serve({}, {REPO: Repo()}) as hub:
        hub.repos[REPO].commit(directory_files(model))
        yield hub


def ended(hub: Hub, *arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    process = start(hub, *arguments, **environment)
    out, said = process.communicate(timeout=120)
    return process.returncode, out, said


def test_pull(hub: Hub, model: Path, tmp_path: Path) -> None:
    status, out, said = ended(hub, "--out", tmp_path / "out")
    assert (status, said) == (0, "")
    first, second, third = out.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: 4.6 MB of weights, 3.4 MB packed, in ")
    assert second == f"Run it with: penstock run {tmp_path / 'out'}"
    assert third.endswith(f": penstock tune {tmp_path / 'out'}")
    pack(model, tmp_path / "packed")
    assert contents(tmp_path / "out") == contents(tmp_path / "packed")
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert set(hub.store_tokens) == {None}


def test_into_the_store(hub: Hub, tmp_path: Path) -> None:
    status, out, _ = ended(hub, "--token", "hf_mine", PENSTOCK_HOME=str(tmp_path))
    assert status == 0
    assert out.splitlines()[1] == "Run it with: penstock run owner/model"
    assert (tmp_path / "models" / "owner" / "model" / "config.json").exists()
    assert set(hub.tokens) == {"Bearer hf_mine"}


def test_interrupted(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 200_000  # so that the end is far, however slow this process is
    process = start(hub, "--out", tmp_path / "out")
    while hub.sent < 200_000:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, "", "interrupted; the same command goes on from here\n")
    hub.faults.bytes_per_second = None
    assert ended(hub, "--out", tmp_path / "out")[0] == 0
    pack(model, tmp_path / "packed")
    assert contents(tmp_path / "out") == contents(tmp_path / "packed")


def test_offline(hub: Hub, tmp_path: Path) -> None:
    status, _, said = ended(hub, "--out", tmp_path / "out", HF_HUB_OFFLINE="1")
    assert status == 1
    problem = f"error: owner/model: {hub.url} cannot be reached: HF_HUB_OFFLINE is set"
    assert said == f"{problem}\nUnset it.\n"


def test_no_hub(hub: Hub, tmp_path: Path) -> None:
    with serve({}) as gone:
        pass
    status, _, said = ended(hub, "--out", tmp_path / "out", HF_ENDPOINT=gone.url)
    assert status == 1
    assert said.startswith(f"error: owner/model: {gone.url} cannot be reached: ")
    assert said.endswith("\nCheck the network and HF_ENDPOINT.\n")


def test_wrong_use(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    status, _, said = ended(hub, "--out", tmp_path)
    assert status == 2
    assert said.startswith(f"error: {tmp_path} is there already and is not an empty directory")


class TestWatcher:
    @pytest.fixture
    def bar(self) -> Progress:
        return Progress(console=Console(file=io.StringIO(), width=200))

    def test_what_it_shows(self, bar: Progress) -> None:
        watcher = PullBar(bar)
        task = bar.tasks[0]
        assert (task.description, task.total) == ("asking the Hub", None)
        watcher.file("model-00001-of-00002.safetensors", 1, 2)
        watcher.progress(5, 10)
        assert (task.description, task.completed, task.total) == ("file 1 of 2", 5, 10)
        watcher.checking("model-00001-of-00002.safetensors")
        assert task.description == "file 1 of 2, checking"

    def test_what_an_earlier_call_has_done_is_no_speed(self, bar: Progress) -> None:
        watcher = PullBar(bar)
        watcher.progress(1 << 30, 1 << 32)
        watcher.progress((1 << 30) + 1, 1 << 32)
        assert bar.tasks[0].completed == (1 << 30) + 1
        assert (bar.tasks[0].speed or 0) < 1 << 20

    def test_notices(self, bar: Progress) -> None:
        PullBar(bar).notice("main of a/b has moved on [to 1]")
        assert isinstance(bar.console.file, io.StringIO)
        assert bar.console.file.getvalue() == "main of a/b has moved on [to 1]\n"
