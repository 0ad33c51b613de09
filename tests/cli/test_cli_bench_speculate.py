from __future__ import annotations

import json
import sys
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from helpers.text_results import text_result
from penstock import cli
from penstock.benchmarks.acceptance import NODES
from penstock.benchmarks.seconds import GuessedPasses, PlainPasses, RandomResult, SimulatedResult, Simulation
from penstock.cli import bench_speculate
from penstock.cli.bench_speculate import random_table, simulated_table, text_tables

GUESSED = GuessedPasses(
    tokens=100,
    passes=25,
    seconds=110.0,
    seconds_per_token=1.1,
    tokens_per_pass=4.0,
    nodes_per_pass=60.5,
    draft_seconds_per_pass=1.5,
    seconds_per_pass=4.4,
    computing_seconds_per_pass=2.5,
    waiting_seconds_per_pass=0.5,
    streamed_bytes=2e9,
    resident_bytes=10**9,
)
COMMON: dict[str, Any] = {
    "model": "model",
    "draft": None,
    "draft_nodes": None,
    "plain": PlainPasses(16, 4.25, 1.5e9, 15 * 10**8),
    "tokens": 100,
    "prompt_tokens": 16,
    "peak_rss_bytes": 3 * 10**9,
    "memory_ceiling_bytes": 4 * 10**9,
    "threads": 2,
    "isa": "avx2",
}
SIMULATED = SimulatedResult(
    **COMMON, drafter="coarse", simulations=[Simulation([[0.7, 0.12, 0.05]], GUESSED, [GUESSED])]
)
RANDOM = RandomResult(
    **COMMON, drafters=["lookup", "coarse"], dropped=["coarse"], guessed=GUESSED, right=0, ratio=1.0171
)


class Terminal:
    """The command line within this process; nothing is measured."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.asked: list[tuple[Any, ...]] = []
        for name, result in (("run_text", text_result()), ("run_simulated", SIMULATED), ("run_random", RANDOM)):
            self._replace(name, result)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.setenv("COLUMNS", "120")

    def _replace(self, name: str, result: Any) -> None:
        def measure(*arguments: Any, tell: Any) -> Any:
            tell("working")
            self.asked.append((name, *arguments))
            return result

        self._monkeypatch.setattr(bench_speculate, name, measure)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["penstock", "bench", "model", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        output = self._capsys.readouterr()
        return int(exited.value.code or 0), output.out, output.err


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def lines_of(shown: RenderableType) -> list[str]:
    console = Console(width=120, file=StringIO())
    console.print(shown)
    file = console.file
    assert isinstance(file, StringIO)
    return [" ".join(line.replace("│", " ").split()) for line in file.getvalue().splitlines()]


class TestTables:
    def test_text(self) -> None:
        lines = lines_of(text_tables(text_result()))
        assert "model, text.txt: tokens a pass, temperature 0" in lines
        for line in (
            "lookup 2.60 4.10",
            "together (lookup, coarse) 1.60 3.10",
            "coarse, a chain, as many steps 3.25 (5) 3.25 (5)",
            "coarse 0 50.0% 62.5% 75.0% 87.5%",
            "2 prompts of 20 tokens, 50 more each; all runs gave the tokens of plain decoding",
        ):
            assert line in lines

    def test_simulated_acceptance_is_labelled(self) -> None:
        lines = lines_of(simulated_table(SIMULATED))
        assert lines[0] == "model, SIMULATED acceptance, the cost of its coarse tier is paid"
        assert "plain 4.25 s 1 0 4.25 s" in lines
        assert "0.7, 0.12, 0.05 1.10 s 4.00 60.5 4.40 s 1.50 s 2.50 s" in lines
        assert lines[-2:] == [
            "streamed a pass: 1.50 GB plain, 2.00 GB with guesses; resident: 1.50 GB, 1.00 GB",
            "memory: 3.00 GB of 4.00 GB; 2 threads, avx2; all runs gave the same tokens",
        ]

    def test_random_text(self) -> None:
        lines = lines_of(random_table(RANDOM))
        assert lines[0] == "model, random text, guesses by lookup, coarse (dropped)"
        assert "plain, median 16 4.25 s 0" in lines
        assert "guessed 25 1.10 s 60.5 1.50 s 1.017" in lines


class TestCommand:
    def test_text(self, bench: Terminal, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        plot = tmp_path / "plot.png"
        code, out, err = bench(
            "--speculate", "--text", "a.txt", "--draft", "small", "--prompts", "3", "--plot", str(plot)
        )
        assert (code, err) == (0, "")
        assert "tokens a pass, temperature 1" in out
        assert plot.exists()
        [(name, model, settings)] = bench.asked
        assert (name, model, settings.text) == ("run_text", "model", Path("a.txt"))
        assert (settings.draft, settings.prompts, settings.prompt_tokens, settings.tokens) == ("small", 3, 200, 64)
        assert settings.nodes == NODES

    def test_one_number_of_guesses(self, bench: Terminal) -> None:
        assert bench("--speculate", "--text", "a.txt", "--draft-nodes", "7", "--json")[0] == 0
        assert bench.asked[0][2].nodes == (7,)

    def test_simulated(self, bench: Terminal) -> None:
        arguments = ("--simulate", "0.7,0.1", "--simulate", "0.9", "--repeats", "2", "--memory", "1GiB", "--json")
        code, out, _ = bench("--speculate", *arguments)
        assert code == 0
        assert json.loads(out)["simulations"][0]["simulated_chances"] == [[0.7, 0.12, 0.05]]
        [(name, _, settings, chances)] = bench.asked
        assert (name, chances) == ("run_simulated", [[[0.7, 0.1]], [[0.9]]])
        assert (settings.repeats, settings.tokens, settings.prompt_tokens, settings.memory) == (2, 64, 16, "1GiB")

    def test_random(self, bench: Terminal) -> None:
        code, out, _ = bench("--speculate", "--random", "--draft-nodes", "9")
        assert code == 0
        assert "random text" in out
        [(name, _, settings)] = bench.asked
        assert (name, settings.tokens, settings.draft_nodes) == ("run_random", 128, 9)
        assert bench("--speculate", "--random", "--tokens", "5")[0] == 0
        assert bench.asked[1][2].tokens == 5

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--speculate",), "Give one of --text FILE"),
            (("--speculate", "--random", "--simulate", "0.5"), "Give one of --text FILE"),
            (("--speculate", "--simulate", "2"), "--simulate 2: these are not chances"),
            (("--speculate", "--random", "--draft", "none"), "leaves nothing to guess with"),
            (("--speculate", "--random", "--repeats", "3"), "--repeats is for --simulate."),
            (("--speculate", "--simulate", "0.5", "--prompts", "3"), "--prompts is for --text."),
            (("--speculate", "--random", "--plot", "a.png"), "--plot is for --text."),
            (("--speculate", "--text", "a", "--plot", "a.gif"), "a plot is a .png"),
            (("--speculate", "--random", "--batch", "2"), "--batch has no meaning here."),
            (("--speculate", "--random", "--passes", "2"), "leave out --speculate"),
            (("--speculate", "--text", "a", "--tokens", "0"), "--tokens 0: at least 1"),
            (("--speculate", "--text", "a", "--draft-nodes", "0"), "--draft-nodes 0: at least 1"),
            (("--draft", "small"), "--draft has no meaning here."),
            (("--text", "a.txt"), "give --speculate too"),
            (("--tokens", "5"), "give --speculate too"),
        ],
    )
    def test_wrong_use(self, bench: Terminal, arguments: tuple[str, ...], words: str) -> None:
        code, out, err = bench(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert words in err
        assert bench.asked == []
