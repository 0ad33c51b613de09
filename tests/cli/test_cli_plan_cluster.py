"""`penstock plan --cluster-of`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

from helpers.cases import CASES
from penstock import cli
from penstock.cli import plan_cluster
from penstock.cli.plan_cluster import ranges
from penstock.forecast import outlook
from penstock.forecast.outlook import Subject
from penstock.stages.cut import Node
from penstock.stages.probe import DiskSpeed, DraftSpeed
from penstock.stages.rates import ComputeSpeed
from penstock.system import machine

MIB = 1 << 20


@pytest.fixture(autouse=True)
def speeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured in no time, in a process of one size, into which other tests have brought nothing."""
    monkeypatch.setattr(outlook, "measure_disk", lambda *_, **__: DiskSpeed(10**9, 2.0, 16 << 20))
    monkeypatch.setattr(outlook, "measure_compute", lambda *_, **__: ComputeSpeed(10e9, 40e9, 10e9, 40e9, 10e9))
    monkeypatch.setattr(outlook, "measure_drafting", lambda *_, **__: DraftSpeed(40e9, 20e9, 30e9, 15e9))
    monkeypatch.setattr(outlook, "PROBE_FILE_BYTES", MIB)
    monkeypatch.setattr(machine, "footprint", lambda: machine.Footprint(100 * MIB, 50 * MIB))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "110")


def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["penstock", "plan", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    output = capsys.readouterr()
    return int(exited.value.code or 0), output.out, output.err


DEALT = """\
A token of llama-3.1-8b on machines: 3 of 4 GiB
                                      raw  GB read  packed, estimated  GB read
 one machine of 4 GiB              23.2 s    12.18             13.9 s     7.28
 all, layers in runs               13.5 s     7.24             4.19 s     2.33
 all, layers dealt out one by one  5.48 s     8.13             1.84 s     2.52

Machines, in MiB: packed, estimated, layers dealt out one by one
           layers      ceiling  process  KV  weights  read    disk  compute
 1, 4 GiB  9 of 0-29     2,856      525  21    2,276   919  1.84 s  0.498 s
 2, 4 GiB  12 of 1-30    2,948      431  24    2,458   902  1.81 s  0.523 s
 3, 4 GiB  11 of 2-31    2,948      393  22    2,497   583  1.17 s  0.480 s

Dealt out, all disks read at the same time, each ahead of its turn. A token takes 1.84 s, with 23 hops.

The sizes rest on the shape llama-3.1-8b as published; the tokenizer is estimated.
A process has its read-ahead buffers in it, KV the rows of a pass; what is read is read in every pass. The
first machine is the one that is typed on. A quarter of each one's memory, at most 1 GiB, is left to its
system; Ray takes 226 MB on the first and 130 MB on any other, and 157 MB in Penstock's own process. Disks
read 524.0 MB/s each; CPUs are as fast as this one. A hop to another machine and back takes 4.96 ms. Keys and
values are of 512 positions. Guesses are not counted: a pass brings one token.
"""


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    code, out, err = plan(capsys, monkeypatch, *request.param.split())
    assert (code, err) == (0, "")
    return "\n".join(line.rstrip() for line in out.splitlines()) + "\n"


OF = "llama-3.1-8b --threads 2 --context 512 --disk 524MB --cluster-of"


@pytest.mark.parametrize("said", [f"{OF} 3x4GiB"], indirect=True)
def test_dealt(said: str) -> None:
    assert said == DEALT


@pytest.mark.parametrize("said", [f"{OF} 6x4GiB"], indirect=True)
def test_in_memory(said: str) -> None:
    assert "Machines, in MiB: packed, estimated, layers in runs\n" in said
    assert "All weights stay in memory, and a pass goes through the machines once." in said
    assert " 1 machine would only add to that, and is left out.\n" in said
    assert "\n 5, 4 GiB " in said
    assert "\n 6, 4 GiB " not in said


@pytest.mark.parametrize("said", [f"{OF} 2x4GiB,1x16GiB"], indirect=True)
def test_machines_of_two_sizes(said: str) -> None:
    assert said.startswith("A token of llama-3.1-8b on machines: 2 of 4 GiB and 1 of 16 GiB\n")
    assert "\n one machine of 4 GiB " in said
    assert "\n one machine of 16 GiB " in said
    assert "One machine of 16 GiB alone is as quick." in said


@pytest.mark.parametrize("said", [f"{OF} 2x160MiB"], indirect=True)
def test_what_does_not_fit(said: str) -> None:
    assert "It does not fit on these machines." in said
    assert said.count("does not fit") == 7


@pytest.mark.parametrize("said", ["demo --cluster-of 2x4GiB --network 100Mbit/s"], indirect=True)
def test_a_model_that_is_here(said: str) -> None:
    assert "The sizes rest on the model's own files." in said
    assert "Disks read 500.0 MB/s each" in " ".join(said.split())


def test_nothing_packs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, _ = plan(capsys, monkeypatch, str(CASES["f16"].write(tmp_path)), "--cluster-of", "2x1GiB")
    assert code == 0
    assert "packed" not in out
    assert "One machine of 1 GiB alone is as quick." in out


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = plan(capsys, monkeypatch, *f"{OF} 2x4GiB --network 1Gbit --json".split())
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["model"] == "llama-3.1-8b"
    assert said["basis"] == "the shape llama-3.1-8b as published; the tokenizer is estimated"
    assert [machine["machine"] for machine in said["machines"]] == ["1, 4 GiB", "2, 4 GiB"]
    assert (said["machines"][0]["disk_bytes_per_second"], said["network_bytes_per_second"]) == (524e6, 125e6)
    assert said["packed"]["best"] == "dealt"
    assert said["packed"]["dealt"]["machines"][1]["layers"][0] > 0


REAL = "llama-3.1-8b --memory 4GiB --context 512 --cluster"


def test_of_machines_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[tuple[str, str]] = []

    def other(address: str, subject: Subject) -> list[Node]:
        measured.append((address, subject.name))
        return [Node("attic\x1b", 16 << 30, 100 * MIB, 250e6, ComputeSpeed(5e9, 20e9, 5e9, 20e9, 5e9))]

    monkeypatch.setattr(plan_cluster, "measure_cluster", other)
    code, out, err = plan(capsys, monkeypatch, *f"{REAL} auto".split())
    assert (code, err, measured) == (0, "", [("auto", "llama-3.1-8b")])
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "Machines of the cluster"
    assert [*map(str.split, lines[2:4])] == [
        ["here", "4", "GiB", "500.0", "MB/s", "10.00", "GB/s", "10.00", "GB/s"],
        ["attic\ufffd", "16", "GiB", "250.0", "MB/s", "5.00", "GB/s", "5.00", "GB/s"],
    ]
    assert lines[5] == "A token of llama-3.1-8b on the 2 machines of the cluster"
    assert "Each machine was measured just now, and briefly." in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--network 1Gbit", "--network and --disk are of machines that are not named."),
        ("--disk 1GB", "--network and --disk are of machines that are not named."),
        ("--cluster-of 2x4GiB --memory 2GiB", "--memory, --prompt-tokens and --draft are of one machine."),
        ("--cluster-of 2x4GiB --prompt-tokens 9", "--memory, --prompt-tokens and --draft are of one machine."),
        ("--cluster-of 2x4GiB --draft none", "--memory, --prompt-tokens and --draft are of one machine."),
        ("--cluster-of x", "'x' is not a size."),
        ("--cluster-of 2x4GiB --network fast", "'fast' is no speed."),
        ("--cluster-of 2x4GiB --cluster auto", "--cluster is of machines that there are, --cluster-of of others."),
        ("--cluster auto --disk 1GB", "The disks of a cluster are measured."),
        ("--cluster auto --draft none", "--memory, --prompt-tokens and --draft are of one machine."),
        ("--cluster-of 2x4GiB --disk 0MB", "A network and a disk have some speed."),
    ],
)
def test_wrong_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, words: str
) -> None:
    code, out, err = plan(capsys, monkeypatch, "demo", *arguments.split())
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("layers", "text"), [([3], "3"), ([0, 1, 2], "0-2"), ([0, 2], "2 of 0-2"), ([0, 2, 4, 6], "4 of 0-6")]
)
def test_layers_for_people(layers: list[int], text: str) -> None:
    assert ranges(layers) == text
