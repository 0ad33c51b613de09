from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, PenstockError, SamplingParams
from penstock.checkpoints.store import find_model
from penstock.events import Event, Events
from penstock.options import OpenOptions
from penstock.trace import MOST_HELD, Trace, TraceWarning


class Slice(dict[str, Any]):
    @property
    def begin(self) -> int:
        return round(self["ts"] * 1e3)

    @property
    def end(self) -> int:
        return self.begin + round(self["dur"] * 1e3)


def read_trace(path: Path) -> tuple[str, dict[str, list[Slice]]]:
    """The process's name and the slices of each named thread, read as strictly as any viewer may.

    Slices of a thread come in the order of their begin, parents before children, and nest without crossing.
    """
    content = json.loads(path.read_bytes())
    assert set(content) == {"traceEvents", "displayTimeUnit"}
    names: dict[tuple[int, int], str] = {}
    process, pid = "", content["traceEvents"][0]["pid"]
    slices: dict[str, list[Slice]] = defaultdict(list)
    for record in content["traceEvents"]:
        assert record["pid"] == pid
        if record["ph"] == "M":
            assert set(record) == {"name", "ph", "pid", "tid", "args"}
            if record["name"] == "process_name":
                process = record["args"]["name"]
            elif record["name"] == "thread_name":
                names[record["tid"]] = record["args"]["name"]
            else:
                assert record["name"] == "thread_sort_index"
            continue
        assert set(record) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
        assert (record["ph"], record["ts"] >= 0, record["dur"] >= 0) == ("X", True, True)
        slices[names[record["tid"]]].append(Slice(record))
    assert len(set(names.values())) == len(names)
    for track in slices.values():
        check_nesting(track)
    return process, slices


def check_nesting(track: list[Slice]) -> None:
    open_slices: list[Slice] = []
    for one, following in pairwise(track):
        assert (one.begin, -one.end) <= (following.begin, -following.end)
    for one in track:
        while open_slices and open_slices[-1].end <= one.begin:
            open_slices.pop()
        assert not open_slices or one.end <= open_slices[-1].end, (open_slices[-1], one)
        open_slices.append(one)


def traced(path: Path, share: float = 0.2, **params: Any) -> tuple[str, dict[str, list[Slice]], int]:
    """A trace of the demo model with so much of it in memory, and the bytes that its passes read."""
    model = find_model("demo")
    weights = (model / "model.safetensors").stat().st_size
    with Trace(path, "a title") as trace, LLM(model, OpenOptions(max_resident=int(share * weights))) as llm:
        llm.events.listeners.append(trace)
        [output] = llm.generate(["def add(a, b):"], SamplingParams(temperature=0, **params))
    return *read_trace(path), output.stats.bytes_read


def test_a_run_nests_passes_parts_waits_and_computations(tmp_path: Path) -> None:
    title, slices, _ = traced(tmp_path / "trace.json", max_tokens=5)
    assert title == "a title"
    main = slices["passes"]
    passes = [one for one in main if one["cat"] == "pass"]
    assert len(passes) == 5
    assert {one["name"] for one in passes} == {"pass"}
    for one in passes:
        parts = [part["name"] for part in main if part["cat"] == "part" and one.begin <= part.begin < one.end]
        assert parts == ["embedding", *(f"layer {i}" for i in range(6)), "head"]
    for kind in ("wait", "compute"):
        for one in (one for one in main if one["cat"] == kind):
            around = [
                part for part in main if part["cat"] == "part" and part.begin <= one.begin and one.end <= part.end
            ]
            assert len(around) == 1
            layer = around[0]["name"].removeprefix("layer ")
            assert not layer.isdigit() or f".layers.{layer}." in one["args"]["tensor"]


def test_guesses_are_made_and_checked(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json", "a title") as trace, LLM.open("demo", draft_nodes=5) as llm:
        llm.events.listeners.append(trace)
        [output] = llm.generate(["def add(a, b):" * 3], SamplingParams(temperature=0, max_tokens=12))
    main = read_trace(tmp_path / "trace.json")[1]["passes"]
    checked = []
    for draft, one in pairwise(one for one in main if one["cat"] in ("draft", "pass")):
        if (draft["cat"], one["cat"]) == ("draft", "pass"):
            guesses = draft["name"].removeprefix("draft ")
            assert one["name"] == ("pass" if guesses == "0 guesses" else f"verify {guesses}")
            assert draft.end <= one.begin
            checked.append(int(guesses.split()[0]))
    assert sum(checked) == output.stats.guesses.nodes > 0


def test_reads_are_in_threads_of_their_own(tmp_path: Path) -> None:
    _, slices, bytes_read = traced(tmp_path / "trace.json", max_tokens=5)
    readers = sorted(name for name in slices if name != "passes")
    assert readers == [f"read {i + 1}" for i in range(len(readers))]
    reads = [one for name in readers for one in slices[name]]
    assert reads
    assert {one["name"] for one in reads} == {"read"}
    waits = [one for one in slices["passes"] if one["cat"] == "wait" and "embed_tokens" not in one["args"]["tensor"]]
    assert sum(one["args"]["bytes"] for one in waits) == bytes_read
    assert all(one["args"]["bytes"] > 0 and one["args"]["tensor"].endswith(".weight") for one in reads)
    for one in reads:
        assert one["args"]["GB/s"] == pytest.approx(one["args"]["bytes"] / (one["dur"] * 1e3), rel=0.01, abs=0.001)


def test_a_file_is_complete_after_every_pass(tmp_path: Path) -> None:
    path, events = tmp_path / "trace.json", Events()
    trace = Trace(path, "title")
    events.listeners.append(trace)
    begin = time.perf_counter()
    for number in range(3):
        start = begin + 10 * number
        events.tell("compute", "w", start + 1, start + 2, 10**9)
        events.tell("part", "head", start + 0.5, start + 2.5)
        events.tell("pass", "1 rows", start, start + 3)
        _, slices = read_trace(path)
        assert [one["name"] for one in slices["passes"]] == ["pass", "head", "compute"] * (number + 1)
    assert slices["passes"][0]["args"] == {"of": "1 rows"}
    assert slices["passes"][2]["args"] == {"tensor": "w", "bytes": 10**9, "GB/s": 1.0}
    trace.close()
    assert read_trace(path)[1] == slices


def test_what_is_held_has_a_limit(tmp_path: Path) -> None:
    path, events = tmp_path / "trace.json", Events()
    with Trace(path, "title") as trace:
        events.listeners.append(trace)
        begin = time.perf_counter()
        for index in range(MOST_HELD + 1):
            events.tell("wait", "w", begin + index, begin + index + 1)
        assert len(read_trace(path)[1]["passes"]) == MOST_HELD
    assert len(read_trace(path)[1]["passes"]) == MOST_HELD + 1


def test_threads_may_tell_at_once(tmp_path: Path) -> None:
    path, events = tmp_path / "trace.json", Events()

    def read() -> None:
        for _ in range(500):
            begin = time.perf_counter()
            events.tell("read", "w", begin, time.perf_counter(), 1)

    with Trace(path, "title") as trace:
        events.listeners.append(trace)
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            begin = time.perf_counter()
            events.tell("pass", "1 rows", begin, time.perf_counter())
        for thread in threads:
            thread.join()
    _, slices = read_trace(path)
    assert [len(slices[f"read {i}"]) for i in (1, 2, 3, 4)] == [500] * 4


def test_an_empty_trace_is_sound(tmp_path: Path) -> None:
    with Trace(tmp_path / "trace.json", 'a "title"'):
        pass
    assert read_trace(tmp_path / "trace.json") == ('a "title"', {})


@pytest.mark.parametrize("name", ["no/such/directory/trace.json", "."])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(PenstockError, match="The trace cannot be written to") as caught:
        Trace(tmp_path / name, "title")
    assert "Let --trace name a file" in caught.value.remedy


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_device_is_refused() -> None:
    with pytest.raises(PenstockError, match="cannot be written to /dev/full"):
        Trace(Path("/dev/full"), "title")


class FullDisk:
    """A file of which nothing more can be written once the disk is full."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if self.full and len(data) > 10:
            raise OSError(28, "No space left on device")
        return int(self._file.write(data))


def test_a_full_disk_ends_the_trace_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    disk = FullDisk(path.open("wb", buffering=0))
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    trace = Trace(path, "title")
    monkeypatch.undo()
    begin = time.perf_counter()
    trace(Event("pass", "1 rows", begin, begin + 1, 0, 1))
    disk.full = True
    for _ in range(3):
        trace(Event("pass", "1 rows", begin + 1, begin + 2, 0, 1))
    with pytest.warns(TraceWarning, match=r"The trace ends early: .*trace.json: No space left on device"):
        trace.close()
    assert len(read_trace(path)[1]["passes"]) == 1


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=120)


def test_the_option(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    run = ("run", "demo", "--raw", "def add(a, b):", "--temperature", "0", "--max-tokens", "4")
    result = penstock(*run, "--trace", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == penstock(*run).stdout
    title, slices = read_trace(path)
    assert title == "penstock run demo"
    assert sum(one["cat"] == "pass" for one in slices["passes"]) == 4


def test_the_option_fails_before_the_model_is_opened(tmp_path: Path) -> None:
    result = penstock("run", "no/such/model", "text", "--trace", str(tmp_path / "no" / "trace.json"))
    assert result.returncode == 1
    assert "The trace cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_completes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    command = [sys.executable, "-m", "penstock", "run", "demo", "--raw", "def add(a, b):", "--trace", str(path)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
    assert process.returncode == 130
    _, slices = read_trace(path)
    assert sum(one["cat"] == "pass" for one in slices["passes"]) >= 1
