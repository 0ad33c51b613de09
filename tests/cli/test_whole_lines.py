"""What a display names, a path with blanks and brackets in it, stands there as it is, however narrow the terminal."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.text_results import text_result
from helpers.thorough import quick
from penstock import cli
from penstock.benchmarks import passes as benchmark
from penstock.benchmarks.passes import BenchSettings
from penstock.checkpoints.store import find_model
from penstock.cli import bench_speculate, demonstration
from penstock.cli.bench import table
from penstock.cli.bench_speculate import text_tables
from penstock.cli.plan_guesses import verdict
from penstock.cli.whole_lines import tell
from penstock.errors import PenstockError
from penstock.forecast import outlook
from penstock.forecast.guess_plan import Guesses
from penstock.stages.probe import DiskSpeed, DraftSpeed
from penstock.stages.rates import ComputeSpeed

NAME = "two  blanks [b]x[/b] and-more-of-it"
WIDTHS = range(20, 140)


def shown(width: int, *parts: Any) -> str:
    console = Console(width=width, file=StringIO(), highlight=False)
    tell(console, *parts)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in no time."""
    for module in (benchmark, outlook):
        monkeypatch.setattr(module, "measure_disk", lambda *_, **__: DiskSpeed(10**9, 1.0, 16 << 20))
    monkeypatch.setattr(outlook, "measure_compute", lambda *_, **__: ComputeSpeed(20e9, 100e9, 10e9, 80e9, 15e9))
    monkeypatch.setattr(outlook, "measure_drafting", lambda *_, **__: DraftSpeed(40e9, 20e9, 30e9, 15e9))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


@pytest.mark.usefixtures("speeds")
def test_tables_at_every_width(tmp_path: Path) -> None:
    path = f"{tmp_path}/{NAME}"
    timed = table(replace(benchmark.run("demo", BenchSettings(passes=1)), model=path))
    guessed = text_tables(replace(text_result(), model=path))
    read = text_tables(replace(text_result(), text=path))
    for width in WIDTHS:
        assert [path in shown(width, each) for each in (timed, guessed, read)] == [True] * 3, width
        assert path in shown(width, verdict(Guesses(None, None, path))), width


@pytest.mark.usefixtures("speeds")
@pytest.mark.parametrize("columns", quick(1, ["40", "97"]))
def test_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    path, store = tmp_path / NAME, tmp_path / f"store {NAME}"
    store.mkdir(parents=True)
    path.parent.mkdir()
    path.symlink_to(find_model("demo"))
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("PENSTOCK_HOME", str(store))
    out = ""
    for model in (str(path), "smollm2-135m"):
        monkeypatch.setattr(sys, "argv", ["penstock", "plan", model, "--memory", "2GiB"])
        with pytest.raises(SystemExit):
            cli.main()
        out += capsys.readouterr().out
    assert f"Memory of {path}\n" in out
    assert f"`penstock pack '{path}' OUT`" in out
    assert f"random numbers in {store}." in out


def test_what_the_demo_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> Any:
        raise PenstockError(f"/tmp/{NAME} is full.", "Free some.")

    monkeypatch.setattr("penstock.demo.layers.find_room", no_room)
    console = Console(width=30, file=StringIO(), highlight=False)
    demonstration._extrapolate(console)
    assert isinstance(console.file, StringIO)
    assert f"Left out: /tmp/{NAME} is full. Free some.\n" in console.file.getvalue()


def test_what_is_shown_by_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(bench_speculate, "run_text", lambda *_, **__: replace(text_result(), text=NAME))
    monkeypatch.setattr(sys, "argv", ["penstock", "bench", "model", "--speculate", "--text", NAME])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"model, {NAME}: tokens a pass, temperature 0\n" in capsys.readouterr().out
