"""What a model would take on several machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.checkpoints.store import find_model
from penstock.errors import UsageError
from penstock.forecast import outlook
from penstock.forecast.cluster import (
    MOST_LEFT,
    RAY_HEAD_BYTES,
    RAY_PROCESS_BYTES,
    RAY_WORKER_BYTES,
    ClusterOutlook,
    ClusterSettings,
    assumed_machines,
    look_at_cluster,
    measured_machines,
    parse_machines,
    parse_network,
    parts_of,
)
from penstock.forecast.outlook import Outlook, PlanSettings, look
from penstock.packing.pack import pack
from penstock.stages.cut import Cut, Network, Node, StageForecast
from penstock.stages.probe import DiskSpeed, DraftSpeed
from penstock.stages.rates import ComputeSpeed
from penstock.system.sizes import MIB

GIB = 1 << 30
COMPUTE = ComputeSpeed(10e9, 40e9, 10e9, 40e9, 10e9)


@pytest.fixture(autouse=True)
def speeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured in no time."""
    monkeypatch.setattr(outlook, "measure_disk", lambda *_, **__: DiskSpeed(10**9, 2.0, 16 << 20))
    monkeypatch.setattr(outlook, "measure_compute", lambda *_, **__: COMPUTE)
    monkeypatch.setattr(outlook, "measure_drafting", lambda *_, **__: DraftSpeed(40e9, 20e9, 30e9, 15e9))
    monkeypatch.setattr(outlook, "PROBE_FILE_BYTES", MIB)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "store"))


def outlook_of(model: str = "llama-3.1-8b", context: int = 512) -> Outlook:
    return look(model, PlanSettings(memory="4GiB", context=context, draft="none", prompts=()))


def looked(machines: str, disk: str | None = "524MB", context: int = 512) -> ClusterOutlook:
    outlook = outlook_of(context=context)
    settings = ClusterSettings.parse(machines, Network(), disk)
    return look_at_cluster(outlook, assumed_machines(outlook, settings), "bf16", 0.0)


def cut_of(found: ClusterOutlook, how: str) -> Cut:
    cut = found.forms["packed"].ways[how]  # type: ignore[index]
    assert cut is not None
    return cut


def stage_of(cut: Cut, place: int) -> StageForecast:
    stage = cut.stages[place]
    assert stage is not None
    return stage


class TestMachines:
    @pytest.mark.parametrize(
        ("text", "machines"),
        [
            ("4x4GiB", (4 * GIB,) * 4),
            ("2x4GiB,1x16GiB", (4 * GIB, 4 * GIB, 16 * GIB)),
            ("8GiB", (8 * GIB,)),
            (" 1 x 512 MiB , 4G", (512 * MIB, 4 * GIB)),
            ("2X2GiB,2*1GiB", (2 * GIB, 2 * GIB, GIB, GIB)),
        ],
    )
    def test_as_people_write_them(self, text: str, machines: tuple[int, ...]) -> None:
        assert parse_machines(text) == machines

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "'' names no machines."),
            ("4GiB,", "'4GiB,' names no machines."),
            ("0x4GiB", "'0x4GiB' is no number of machines."),
            ("257x4GiB", "'257x4GiB' is no number of machines."),
            ("200x4GiB,57x1GiB", "'200x4GiB,57x1GiB' is no number of machines."),
            ("4x", "'4x' is not a size: there is no unit 'x'."),
            ("4 machines", "'4 machines' is not a size: there is no unit 'machines'."),
            ("4x4GiBs", "'4GiBs' is not a size: there is no unit 'GiBs'."),
        ],
    )
    def test_what_names_none(self, text: str, problem: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_machines(text)
        assert caught.value.problem == problem

    def test_settings(self) -> None:
        settings = ClusterSettings.parse("2x4GiB", parse_network("100Mbit"), "1GB/s")
        assert (settings.network.bytes_per_second, settings.disk_bytes) == (12.5e6, 1e9)
        for wrong in (lambda: ClusterSettings.parse("2x4GiB", Network(), disk="0"), lambda: parse_network("0")):
            with pytest.raises(UsageError, match="A network and a disk have some speed"):
                wrong()


class TestMemory:
    def test_ray_and_the_system_have_their_part(self) -> None:
        found, alone = looked("3x4GiB"), outlook_of().subject
        stages = cut_of(found, "runs").stages
        rest = 4 * GIB - MOST_LEFT
        assert [stage_of(cut_of(found, "runs"), place).plan.ceiling for place in range(3)] == [
            rest - RAY_HEAD_BYTES,
            rest - RAY_WORKER_BYTES,
            rest - RAY_WORKER_BYTES,
        ]
        processes = [stage.plan.process for stage in stages if stage]
        own = alone.budget.process + alone.budget.scratch + RAY_PROCESS_BYTES
        assert processes[0] == pytest.approx(own, abs=8 * MIB)
        assert processes[0] - processes[1] == alone.tokenizer  # which only the first one has
        [one] = found.forms["packed"].alone.values()
        assert one is not None
        assert (stage_of(one, 0).plan.ceiling, one.hops) == (rest, 0)

    def test_a_small_machine_leaves_a_quarter(self) -> None:
        [one] = looked("2GiB").forms["packed"].alone.values()
        assert one is not None
        assert stage_of(one, 0).plan.ceiling == 1536 * MIB

    def test_a_cluster_of_one_is_that_machine(self) -> None:
        found = looked("1x4GiB").forms["packed"]
        [one], cut = found.alone.values(), found.ways["runs"]
        assert one is not None
        assert cut is not None
        assert (one.seconds, stage_of(one, 0).plan) == (cut.seconds, stage_of(cut, 0).plan)

    def test_each_size_is_told_alone(self) -> None:
        assert [*looked("2x4GiB,1x16GiB,1x4GiB").forms["packed"].alone] == [
            "one machine of 4 GiB",
            "one machine of 16 GiB",
        ]

    def test_keys_and_values(self) -> None:
        short, long = (cut_of(looked("2x4GiB", context=context), "runs") for context in (32, 3200))
        assert long.streamed - short.streamed == pytest.approx(3168 * 131_072, rel=0.1)


class TestSeconds:
    def test_dealt_two_disks_count_as_two(self) -> None:
        found = looked("2x4GiB")
        [one] = found.forms["packed"].alone.values()
        assert one is not None
        assert one.seconds == pytest.approx(one.streamed / 524e6)
        assert cut_of(found, "dealt").seconds < 0.6 * cut_of(found, "runs").seconds < 0.6 * one.seconds
        assert found.forms["packed"].best == cut_of(found, "dealt")

    def test_the_measured_disk_unless_told(self) -> None:
        assert looked("2x4GiB", disk=None).machines.nodes[1].disk_bytes == 500e6
        fast = cut_of(looked("2x4GiB", disk="2GB"), "dealt").seconds
        assert fast < cut_of(looked("2x4GiB", disk=None), "dealt").seconds / 2

    def test_a_slow_network(self) -> None:
        outlook = outlook_of()
        slow, fast = (
            look_at_cluster(
                outlook,
                assumed_machines(outlook, ClusterSettings.parse("2x4GiB", parse_network(speed), "524MB")),
                "bf16",
                0.0,
            )
            for speed in ("1Mbit", "1Gbit")
        )
        assert slow.row_bytes == 16_384
        hops = cut_of(fast, "runs").hops
        assert cut_of(slow, "runs").seconds - cut_of(fast, "runs").seconds == pytest.approx(
            hops * 2 * 16_384 * (1 / 125e3 - 1 / 125e6)
        )

    def test_nothing_fits(self) -> None:
        found = looked("2x128MiB")
        assert found.forms["packed"].best is None
        assert found.as_object()["packed"]["best"] is None

    def test_as_an_object(self) -> None:
        said = json.loads(json.dumps(looked("16x4GiB").as_object()))
        rest = 4 * GIB - MOST_LEFT
        assert [machine["ceiling"] for machine in said["machines"]] == [
            rest - RAY_HEAD_BYTES,
            *[rest - RAY_WORKER_BYTES] * 15,
        ]
        runs = said["packed"]["runs"]
        held = [machine["layers"] for machine in runs["machines"] if machine]
        assert [layer for layers in held for layer in layers] == [*range(32)]
        assert None in runs["machines"]
        assert said["packed"]["best"] == "runs"
        assert runs["seconds_per_token"] < said["packed"]["one_machine"][0]["cut"]["seconds_per_token"]
        assert [machine["head"] for machine in runs["machines"] if machine][:2] == [True, False]


class TestMeasured:
    def test_each_machine_by_what_it_measured(self) -> None:
        outlook = outlook_of()
        small = Node("small", 2 * GIB, 100 * MIB, 100e6, COMPUTE)
        large = Node("large", 64 * GIB, 100 * MIB, 100e6, COMPUTE)
        found = look_at_cluster(outlook, measured_machines(outlook, [small, large], Network()), "bf16", 0.0)
        assert [node.name for node in found.machines.nodes] == ["here", "small", "large"]
        best = found.forms["packed"].best
        assert best is not None
        assert (best.streamed, best.stages[1]) == (0, None)  # the large one holds what is too much for this one
        [(name, one)] = found.forms["packed"].alone.items()
        assert one is not None
        assert name == "this machine"
        ours, alone = stage_of(best, 0).plan, stage_of(one, 0).plan
        assert (ours.ceiling, ours.process - alone.process) == (4 * GIB, RAY_PROCESS_BYTES)
        assert best.seconds < one.seconds


class TestParts:
    def test_of_a_model_that_is_not_here(self) -> None:
        subject = outlook_of().subject
        for form, size in (("raw", subject.size), ("packed", subject.other_size)):
            parts = parts_of(subject, form, 512, "f32", 0.5)  # type: ignore[arg-type]
            whole = sum(parts.layers, parts.head)
            assert size is not None
            assert (whole.nbytes, whole.raw, whole.estimated) == (size.nbytes, size.raw, size.estimated)
            assert (len(parts.layers), parts.positions, parts.kv_dtype, parts.hit_rate) == (32, 512, "f32", 0.5)
            assert whole.indexed == size.indexed

    def test_of_a_packed_model_that_is_here(self, tmp_path: Path) -> None:
        pack(find_model("demo"), tmp_path / "packed")
        subject = outlook_of(str(tmp_path / "packed")).subject
        parts = parts_of(subject, "packed", 512, "bf16", 0.0)
        whole = sum(parts.layers, parts.head)
        assert replace(whole, indexed=0) == replace(subject.size, indexed=0)
        raw = parts_of(subject, "raw", 512, "bf16", 0.0)
        assert sum(raw.layers, raw.head) == subject.other_size

    def test_of_a_raw_model_that_is_here(self) -> None:
        subject = outlook_of("demo").subject
        parts = parts_of(subject, "raw", 512, "bf16", 0.0)
        assert sum(parts.layers, parts.head) == subject.size
