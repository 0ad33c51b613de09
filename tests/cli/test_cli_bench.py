from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from helpers.cases import CASES
from penstock import cli
from penstock.benchmarks import passes as benchmark
from penstock.benchmarks.passes import BenchSettings
from penstock.benchmarks.plot import PassPicture
from penstock.cli.bench import summary, table
from penstock.stages.probe import DiskSpeed


class Terminal:
    """The command line within this process, with a disk that is measured in no time."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.measured = 0

        def measure_disk(*_: Any, **__: Any) -> DiskSpeed:
            self.measured += 1
            return DiskSpeed(10**9, 1.0, 16 << 20)

        monkeypatch.setattr(benchmark, "measure_disk", measure_disk)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.setenv("COLUMNS", "120")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["penstock", "bench", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        output = self._capsys.readouterr()
        return int(exited.value.code or 0), output.out, output.err


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def test_it_keeps_its_own_ceiling() -> None:
    command = [sys.executable, "-m", "penstock", "bench", "demo", "--memory", "240MiB", "--passes", "3", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (result.stderr, result.returncode) == ("", 0)
    said = json.loads(result.stdout)
    assert said["memory_ceiling_bytes"] == 240 << 20
    assert said["peak_rss_bytes"] <= said["memory_ceiling_bytes"]
    assert said["probe_bytes_per_second"] > 0


def test_a_table(bench: Terminal) -> None:
    code, out, err = bench("demo", "--passes", "3", "--threads", "1", "--batch", "2")
    assert (code, err) == (0, "")
    assert out.startswith("demo, 1 threads, ")
    for words in ("median of 2", "after the first of 2 sequences", "prompt of 16", "streamed", "1.00 GB/s", "memory"):
        assert words in out


def test_how_a_pass_compares_with_the_disk(bench: Terminal) -> None:
    result = replace(benchmark.run("demo", BenchSettings(passes=2)), disk_limit_seconds=1.25, ratio_to_disk_limit=1.071)
    lines = {" ".join(line.split()) for line in text_of(table(result)).splitlines()}
    assert {"limit 1.25 s of the disk, for what is streamed", "ratio 1.07 of a pass to that limit"} <= lines
    assert "ratio" not in text_of(table(replace(result, ratio_to_disk_limit=None)))


def test_packed_weights(bench: Terminal) -> None:
    result = benchmark.run("demo", BenchSettings(passes=2))
    packed = replace(result, stored_bytes=10_086_000_000, packed_ratio=0.67204, decoded_bytes_per_second=13.4e9)
    lines = {" ".join(line.split()) for line in text_of(table(packed)).splitlines()}
    assert "weights 10.09 GB of all matrices, 0.672 of BF16" in lines
    assert any(line.endswith("decoding too: 13.40 GB/s of BF16") for line in lines)
    assert "BF16" not in text_of(table(result))


def test_brackets_in_a_path(bench: Terminal, tmp_path: Path) -> None:
    path = CASES["gqa-4"].write(tmp_path / "[b]x[/b]")
    code, out, _ = bench(str(path), "--passes", "1")
    assert code == 0
    assert "[b]x[/b], " in out.replace("\n", "")


def test_a_pass_in_a_line() -> None:
    picture = PassPicture(2.0, {1: [(0.0, 1.0, 3 * 10**9)]}, [(0.0, 0.5)], [(0.5, 0.75), (1.0, 2.0)], [])
    assert summary(picture) == "2.00 s: 1.25 s computing, 0.500 s waiting for the disk; 3.00 GB read, 1.50 GB/s"
    assert summary(PassPicture(2.0, {}, [], [(0.0, 2.0)], [])).endswith("0.00 ms waiting for the disk; no weights read")


def text_of(shown: RenderableType) -> str:
    console = Console(width=120, file=StringIO())
    console.print(shown)
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_json(bench: Terminal) -> None:
    code, out, _ = bench("demo", "--passes", "2", "--prompt-tokens", "7", "--kv-dtype", "f32", "--json")
    said = json.loads(out)
    assert code == 0
    assert (len(said["seconds_per_pass"]), said["prompt_tokens"], said["ratio_to_disk_limit"]) == (2, 7, None)


@pytest.mark.parametrize("passes", ["1", "3"])
def test_a_plot(bench: Terminal, tmp_path: Path, passes: str) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = bench("demo", "--passes", passes, "--plot", str(tmp_path / "pass.png"))
    assert (code, out[:5]) == (0, "demo,")
    assert (tmp_path / "pass.png").read_bytes().startswith(b"\x89PNG")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("no/such/model",), 1, "no such directory"),
            (("demo", "--passes", "0"), 2, "--passes 0: at least 1 is needed."),
            (("demo", "--memory", "1MiB"), 2, "The least that works is"),
            (("demo", "--memory", "lots"), 2, "'lots' is not a size"),
            (("demo", "--prompt-tokens", "100000000"), 2, "are more than the context of"),
            (("demo", "--plot", "pass.gif"), 2, "a plot is a .png, .svg, .pdf file"),
            (("demo", "--threads", "0"), 2, "0 threads: a whole number from 1"),
        ],
    )
    def test_one_message(self, bench: Terminal, arguments: tuple[str, ...], code: int, words: str) -> None:
        result = bench(*arguments)
        assert (result[0], result[1]) == (code, "")
        assert result[2].startswith("error: ")
        assert words in result[2]
        assert bench.measured == 0

    def test_matplotlib_is_missing(self, bench: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        code, _, err = bench("demo", "--plot", str(tmp_path / "pass.png"))
        assert (code, bench.measured) == (1, 0)
        assert "pip install matplotlib" in err
