from __future__ import annotations

import io
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from helpers import in_process
from penstock import LLM, SamplingParams
from penstock.checkpoints.store import find_model
from penstock.cli.stats import layer_table, print_all_stats, print_layers, print_stats, stats_object
from penstock.completion import Stats
from penstock.models.pass_stats import PartStats
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.speculate.speculator import Record

PARTS = (
    PartStats("embedding", 0, 0.001, 0.001, 0.0005),
    PartStats("layer 0", 10_000_000, 0.020, 0.008, 0.004),
    PartStats("layer 1", 30_000_000, 0.060, 0.012, 0.006),
    PartStats("head", 5_000_000, 0.010, 0.000, 0.002),
)


def shown(capture: pytest.CaptureFixture[str]) -> list[str]:
    return capture.readouterr().err.splitlines()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("│┃").split("│")]


def rendered(parts: tuple[PartStats, ...]) -> list[list[str]]:
    """The cells of each row of the table."""
    out = io.StringIO()
    Console(file=out, width=100).print(layer_table(parts, "a title"))
    return [cells(row) for row in out.getvalue().splitlines() if row.startswith("│")]


def test_a_row_for_each_layer_then_the_rest_totals_and_averages() -> None:
    assert rendered(PARTS) == [
        ["layer 0", "10.00", "20.00", "8.00", "4.00"],
        ["layer 1", "30.00", "60.00", "12.00", "6.00"],
        ["embedding", "0.00", "1.00", "1.00", "0.50"],
        ["head", "5.00", "10.00", "0.00", "2.00"],
        ["total", "45.00", "91.00", "21.00", "12.50"],
        ["average layer", "20.00", "40.00", "10.00", "5.00"],
    ]


def test_no_layers() -> None:
    assert rendered(()) == [[name, "0.00", "0.00", "0.00", "0.00"] for name in ("total", "average layer")]


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[LLM, Stats]]:
    """The demo model with a fifth of its weights in memory, and what an answer of 5 tokens took."""
    path = find_model("demo")
    weights = (path / "model.safetensors").stat().st_size
    with LLM(path, OpenOptions(memory=4 << 30, max_resident=weights // 5, draft="none")) as llm:
        [output] = llm.generate(["def add(a, b):"], SamplingParams(temperature=0, max_tokens=5))
        yield llm, output.stats


@pytest.fixture(scope="module")
def packed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, Stats]]:
    """The same from packed weights."""
    path = tmp_path_factory.mktemp("model") / "packed"
    pack(find_model("demo"), path)
    with LLM.open(path, draft="none") as llm:
        [output] = llm.generate(["def add(a, b):"], SamplingParams(temperature=0, max_tokens=5))
        yield llm, output.stats


def test_packed_weights(packed_run: tuple[LLM, Stats], capsys: pytest.CaptureFixture[str]) -> None:
    llm, stats = packed_run
    told = stats_object(llm, stats)
    assert told["weight_bytes"] == 2 * llm.architecture.pass_weights
    assert told["stored_bytes"] == llm.weights.pass_bytes < told["resident_bytes"] == llm.weights.resident_bytes
    assert told["packed_ratio"] == told["stored_bytes"] / told["weight_bytes"] < 0.72
    seconds = statistics.median(totals.compute_seconds for totals in stats.log[1:])
    assert told["decoded_bytes_per_second"] == told["weight_bytes"] / seconds
    print_all_stats(llm, stats)
    line = shown(capsys)[1]
    assert re.fullmatch(r"packed: [\d.]+ MB, 0\.\d{3} of BF16; decoded and applied at .*B/s of BF16", line)


def test_packed_weights_without_a_pass_of_one_row(
    packed_run: tuple[LLM, Stats], capsys: pytest.CaptureFixture[str]
) -> None:
    llm, stats = packed_run
    prompt = replace(stats, log=stats.log[:1])
    assert stats_object(llm, prompt)["decoded_bytes_per_second"] is None
    print_all_stats(llm, prompt)
    assert re.fullmatch(r"packed: [\d.]+ MB, 0\.\d{3} of BF16", shown(capsys)[1])


def test_the_object(run: tuple[LLM, Stats]) -> None:
    llm, stats = run
    told = stats_object(llm, stats)
    assert json.loads(json.dumps(told)) == told
    assert told["memory_ceiling_bytes"] == 4 << 30
    assert 0 < told["resident_bytes"] <= told["weight_bytes"] // 5 + (1 << 20)
    assert told["resident_bytes"] + told["streamed_bytes_per_pass"] == told["weight_bytes"] == told["stored_bytes"]
    assert (told["packed_ratio"], told["decoded_bytes_per_second"]) == (None, None)
    assert told["bytes_read"] == told["weight_bytes"] + 4 * told["streamed_bytes_per_pass"]
    assert told["disk_wait_seconds"] == pytest.approx(sum(totals.wait_seconds for totals in stats.log))
    assert told["compute_seconds"] == pytest.approx(sum(totals.compute_seconds for totals in stats.log))
    busy = told["disk_wait_seconds"] + told["compute_seconds"]
    assert told["bytes_per_second"] == pytest.approx(told["bytes_read"] / busy)
    assert told["peak_rss_bytes"] > told["resident_bytes"]
    assert (told["threads"], told["isa"]) == (llm.kernels.threads, llm.kernels.isa)
    assert "parts" not in told
    assert told["guesses"] is None


def guessed(stats: Stats) -> Stats:
    """As if two of its passes had checked guesses."""
    record = Record(
        walks=2,
        nodes=30,
        accepted=3,
        reached=Counter({1: 2, 2: 2, 3: 1}),
        right=Counter({1: 2, 2: 1}),
        drafter_reached=Counter({"lookup": 3, "coarse": 4}),
        drafter_right=Counter({"coarse": 3}),
    )
    log = [replace(totals, seconds=1.0, draft_seconds=0.125, guesses=10) for totals in stats.log[:4]]
    return replace(stats, log=log, guesses=record)


def test_guesses(run: tuple[LLM, Stats], capsys: pytest.CaptureFixture[str]) -> None:
    llm, stats = run
    told = stats_object(llm, guessed(stats))
    assert json.loads(json.dumps(told)) == told
    assert told["guesses"] == {
        "checked": 30,
        "right": 3,
        "passes": 2,
        "a_pass": 15.0,
        "right_by_depth": [1.0, 0.5, 0.0],
        "right_by_drafter": {"coarse": 0.75, "lookup": 0.0},
        "draft_seconds": 0.5,
        "draft_share_of_time": 0.125,
    }
    print_all_stats(llm, guessed(stats))
    assert shown(capsys)[1:3] == [
        "guesses: 15.0 a pass, 1.50 of them right; made in 0.500 s, 12% of the time",
        "right, one token on, two, ...: 100%, 50%, 0%; by drafter: coarse 75%, lookup 0%; "
        "a raw checkpoint has no coarse weights to guess with, a packed one has",
    ]


def test_the_object_with_layers(run: tuple[LLM, Stats]) -> None:
    llm, stats = run
    parts = stats_object(llm, stats, layers=True)["parts"]
    assert [part["name"] for part in parts] == ["embedding", *(f"layer {i}" for i in range(6)), "head"]
    seconds = {"read_seconds", "wait_seconds", "compute_seconds", "network_seconds"}
    assert set(parts[0]) == {"name", "node", "bytes_read", "experts", "experts_read", *seconds}
    assert sum(part["bytes_read"] for part in parts) == stats.log[-1].bytes_read


def test_a_single_pass(run: tuple[LLM, Stats]) -> None:
    llm, stats = run
    one = Stats(
        stats.prompt_tokens, 0, tokens=1, seconds=2.0, first_token_seconds=2.0, log=stats.log[:1], parts=stats.parts
    )
    told = stats_object(llm, one)
    assert told["streamed_bytes_per_pass"] == stats.log[0].bytes_read
    assert told["seconds_per_token"] == 0.0


def test_lines_for_people(run: tuple[LLM, Stats], capsys: pytest.CaptureFixture[str]) -> None:
    llm, stats = run
    print_all_stats(llm, stats)
    lines = shown(capsys)
    assert len(lines) == 4
    assert re.match(
        r"\d+ tokens in, 5 out in [\d.]+ s: first after [\d.]+ s, then [\d.]+ s a token; 5 passes", lines[0]
    )
    assert re.fullmatch(r"weights: [\d.]+ MB resident, [\d.]+ MB streamed a pass; .* read in all, .*B/s", lines[1])
    shares = re.match(r"time: (\d+)% waiting for the disk, (\d+)% computing", lines[2])
    assert shares
    assert 99 <= int(shares[1]) + int(shares[2]) <= 101
    assert re.fullmatch(r"memory: 0\.\d\d GiB at the peak, 4\.00 GiB allowed", lines[3])
    print_layers(stats)
    assert shown(capsys)[0].strip() == "pass 5, the last"


def test_three_lines(run: tuple[LLM, Stats], packed_run: tuple[LLM, Stats], capsys: pytest.CaptureFixture[str]) -> None:
    llm, stats = run
    print_stats(llm, stats)
    time, shares, memory = shown(capsys)
    assert re.fullmatch(r"5 tokens in [\d.]+ s: first after [\d.]+ s, then [\d.]+ s a token", time)
    assert re.fullmatch(r"time: \d+% waiting for the disk, \d+% computing; [\d.]+ MB read", shares)
    kept, read = r"[\d.]+ MB of weights stay", r"[\d.]+ MB are read in each pass"
    assert re.fullmatch(rf"memory: 0\.\d\d of 4\.00 GiB allowed; {kept}, {read}", memory)
    print_stats(llm, guessed(stats))
    assert shown(capsys)[0].endswith(" s a token; 1.25 tokens a pass")
    print_stats(*packed_run)
    assert shown(capsys)[2].endswith(" MB of weights stay, which is all of them")


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "run", "demo", "--raw", "x", "--max-tokens", "3", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.thorough
def test_text_is_the_same_with_all_options_of_the_command() -> None:
    text = penstock("--temperature", "0").stdout
    for options, words in (
        (("--stats",), "GiB allowed"),
        (("--stats=all",), "seed "),
        (("--stats-layers",), "average layer"),
    ):
        result = penstock("--temperature", "0", *options)
        assert result.stdout == text
        assert words in result.stderr


def in_this(*arguments: str) -> subprocess.CompletedProcess[str]:
    return in_process.penstock("run", "demo", "--raw", "x", "--max-tokens", "3", *arguments)


@pytest.mark.parametrize(("option", "lines", "words"), [("--stats", 3, "MB read"), ("--stats=all", 4, "seed ")])
def test_short_and_all(option: str, lines: int, words: str) -> None:
    result = in_this("--draft", "none", option)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, lines)
    assert words in result.stderr


def test_a_prompt_may_follow_it_and_look_like_it() -> None:
    short = ("--max-tokens", "2", "--raw")
    assert in_process.penstock("run", "demo", *short, "--stats", "x").returncode == 0
    result = in_process.penstock("run", "demo", *short, "--", "--stats")
    assert (result.returncode, result.stderr) == (0, "")


def test_what_it_cannot_be() -> None:
    result = in_this("--stats=layers")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --stats=layers is not known.\nGive --stats, or --stats=all.\n"


def test_options_of_the_command() -> None:
    assert "average layer" in penstock("--stats-layers").stderr
    stats = json.loads(penstock("--json", "--stats", "--draft", "none").stdout)["stats"]
    assert "parts" not in stats
    assert stats["guesses"] is None
    stats = json.loads(penstock("--json", "--stats-layers", "--draft-nodes", "3").stdout)["stats"]
    assert stats["tokens"] == 3
    assert len(stats["parts"]) == 8


def test_each_machine_has_a_line_where_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    """And the network its share of the time."""
    there = (
        PartStats("network two", 0, 0.0, 0.0, 0.0, network_seconds=0.005, node="two"),
        PartStats("layer 2", 20_000_000, 0.050, 0.030, 0.004, node="two"),
    )
    with LLM.open("demo", draft="none") as llm:
        completion = llm.submit("x", SamplingParams(max_tokens=2, ignore_eos=True))
        llm.step()
        stats = completion.stats
        stats.parts = [*PARTS, *there]
        stats.log = [replace(stats.log[0], wait_seconds=0.051, compute_seconds=0.0165, network_seconds=0.005)]
        print_all_stats(llm, stats)
        lines = shown(capsys)
        assert any(
            line.startswith("time: 70% waiting for the disk, 23% computing, 7% on the network") for line in lines
        )
        assert "here, 2 layers, last pass: 45.0 MB read, 21.00 ms waiting, 12.50 ms computing" in lines
        (line,) = [line for line in lines if line.startswith("two")]
        assert line.endswith("20.0 MB read, 30.00 ms waiting, 4.00 ms computing, 5.00 ms on the way there and back")
        stats.parts = list(PARTS)
        print_all_stats(llm, stats)
        assert not any(line.startswith("here") for line in shown(capsys))
