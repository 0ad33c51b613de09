from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from penstock import benchmark, cli
from penstock.probe import DiskSpeed


class Terminal:
    """The command line within this process, with a disk that is measured in no time."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.measured = 0

        def measure_disk(*_: Any, **__: Any) -> DiskSpeed:
            self.measured += 1
            return DiskSpeed(10**9, 1.0)

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
    for words in ("median of 2", "after the first of 2 sequences", "prompt of 16", "streamed", "1.000 GB/s", "memory"):
        assert words in out


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
            (("demo", "--threads", "0"), 2, "at least one"),
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
