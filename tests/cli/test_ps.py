"""`penstock ps`, and the files that processes keep about themselves."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import in_process
from penstock.checkpoints.store import find_model
from penstock.cli import running
from penstock.cli.running import Running, registered, runtime_folder, users_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and locks")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "penstock"


def listed() -> list[dict[str, object]]:
    return list(json.loads(in_process.penstock("ps", "--json").stdout))


def test_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_folder() == tmp_path / "penstock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert runtime_folder() == tmp_path / "cache" / "penstock" / "running"


def test_nothing_runs(folder: Path) -> None:
    assert in_process.penstock("ps").stdout == "No Penstock process runs.\n"
    assert listed() == []


def test_a_process_is_there_until_it_is_killed(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "penstock",
        "run",
        "demo",
        "--raw",
        "x",
        "--memory",
        "1GiB",
        "--max-tokens",
        "99999",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (found := listed()):
            time.sleep(0.05)
        [one] = found
        assert (one["pid"], one["command"], one["model"], one["port"]) == (process.pid, "run", "demo", None)
        assert (one["ceiling"], one["path"]) == (1 << 30, str(find_model("demo").resolve()))
        assert isinstance(one["memory"], int)
        assert one["memory"] > 1 << 20
        assert f"penstock run (process {process.pid})" in users_of(find_model("demo"))
        heading, row = in_process.penstock("ps").stdout.splitlines()
        assert heading.split() == ["process", "command", "model", "memory", "ceiling", "port", "for"]
        assert re.fullmatch(rf" *{process.pid}  run +demo +0\.\d\d GiB +1\.00 GiB +\d+ .*", row)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(folder.iterdir())) == 1  # what it has left
    assert listed() == []
    assert list(folder.iterdir()) == []


def test_the_file_goes_with_the_command(folder: Path) -> None:
    seen: list[dict[str, object]] = []

    def serve(model: str, memory: str | None) -> None:
        running.listens_at(8123)
        seen.extend(listed())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registered(serve)(model="[b]none[/b]", memory=None)
    [one] = seen
    assert (one["command"], one["model"], one["port"], one["pid"]) == ("serve", "[b]none[/b]", 8123, os.getpid())
    assert isinstance(one["ceiling"], int)
    assert one["ceiling"] > 0
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    assert in_process.penstock("show", "demo").returncode == 0
    registered(lambda model: None)(model="demo")


def test_a_folder_that_is_none(folder: Path) -> None:
    folder.write_text("a file")
    done: list[str] = []
    registered(lambda model: done.append(model))(model="demo")
    assert done == ["demo"]
    assert listed() == []


SOUND = asdict(Running(1, platform.node(), "run", "demo", "", None, None, 0.0))


@given(
    st.binary(max_size=50)
    | st.dictionaries(
        st.sampled_from([*SOUND, "more"]), st.none() | st.integers() | st.text(max_size=3) | st.floats(), max_size=3
    ).map(lambda changed: json.dumps(SOUND | changed).encode())
)
def test_whatever_lies_there_is_no_process(content: bytes) -> None:
    """It is locked by nobody."""
    runtime_folder().mkdir(exist_ok=True)
    (runtime_folder() / "1-ab.json").write_bytes(content)
    assert running.running() == []


def test_of_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a home directory that several share."""

    def look(model: str) -> None:
        assert len(running.running()) == 1
        monkeypatch.setattr("penstock.cli.running.platform.node", lambda: "another")
        assert running.running() == []

    registered(look)(model="demo")
