from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cases import CASES
from checkpoints import tiny_config

from penstock import LLM, machine, outlook
from penstock.errors import CheckpointError, ContextError, MemoryCeilingError, UnsupportedError, UsageError
from penstock.forecast import Rates, forecast_prompt, forecast_token
from penstock.machine import Footprint
from penstock.outlook import Outlook, PlanSettings, look
from penstock.plan import MIB, Demand
from penstock.probe import ComputeSpeed, DiskSpeed, room_for_probe
from penstock.shapes import SHAPES

SPEEDS = Rates(disk_bytes=500e6, row_bytes=20e9, flops=100e9)


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, list[Path], float]]:
    """Stands in for the probes; which of them ran, with which files, within how much memory."""
    ran: list[tuple[str, list[Path], float]] = []

    def measure_disk(paths: Sequence[Path], nbytes: int, *, seconds: float, memory: float) -> DiskSpeed:
        assert all(path.exists() for path in paths)
        ran.append(("disk", list(paths), memory))
        return DiskSpeed(10**9, 2.0, 12_288)

    def measure_compute(kernels: object, *, memory: float) -> ComputeSpeed:
        ran.append(("compute", [], memory))
        return ComputeSpeed(SPEEDS.row_bytes, SPEEDS.flops)

    monkeypatch.setattr(outlook, "measure_disk", measure_disk)
    monkeypatch.setattr(outlook, "measure_compute", measure_compute)
    monkeypatch.setattr(outlook, "PROBE_FILE_BYTES", MIB)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "store"))
    return ran


def weights(found: Outlook) -> int:
    return found.plan.resident + found.plan.streamed


def config_of(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in tiny_config(**changes).items() if value is not None}


def on_hub(monkeypatch: pytest.MonkeyPatch, config: Mapping[str, Any]) -> None:
    monkeypatch.setattr(outlook, "repo_config", lambda repo: dict(config))


class TestModelsThatAreHere:
    @pytest.mark.parametrize("name", ["gqa-4", "f16", "f32"])
    def test_plan_and_forecasts(self, tmp_path: Path, name: str) -> None:
        path = CASES[name].write(tmp_path / "model")
        found = look(str(path), PlanSettings(memory="16GiB", threads=1, prompts=(16, 600)))
        with LLM.open(path, memory="16GiB", threads=1) as llm:
            assert weights(found) == found.plan.resident == llm.weights.pass_bytes
        assert (found.basis, found.threads, found.plan.ceiling) == ("the model's own files", 1, 16 << 30)
        assert (found.context, found.most_context) == (512, 512)
        assert found.token == forecast_token(found.plan, SPEEDS)
        first = found.prompts[16]
        assert first is not None
        assert first.bytes_read == weights(found)
        assert found.prompts[600] is None  # of 512 positions

    def test_the_probes_stay_within_the_ceiling(
        self, tmp_path: Path, probes: list[tuple[str, list[Path], float]]
    ) -> None:
        path = CASES["shards"].write(tmp_path / "model")
        found = look(str(path), PlanSettings(memory="16GiB"))
        with LLM.open(path, memory="16GiB") as llm:
            room = room_for_probe(llm.memory.budget)
        (disk, paths, disk_room), (compute, _, compute_room) = probes
        assert (disk, compute) == ("disk", "compute")
        assert [file.name for file in paths] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        plan = found.plan
        assert disk_room == compute_room == plan.ceiling - plan.process - plan.scratch - plan.allowance
        assert disk_room == pytest.approx(room, abs=64 * MIB)  # the process has grown meanwhile

    def test_as_an_object(self, tmp_path: Path) -> None:
        found = look(str(CASES["gqa-4"].write(tmp_path / "model")), PlanSettings(prompts=(9,)))
        said = json.loads(json.dumps(found.as_object()))
        assert (said["disk_bytes_per_second"], said["probe_read_bytes"]) == (500e6, 12_288)
        assert (said["row_bytes_per_second"], said["flops_per_second"]) == (20e9, 100e9)
        assert said["seconds_per_token"] == found.token.seconds
        assert said["first_token"]["9"]["passes"] == 1
        assert said["memory"]["tokenizer"] == found.tokenizer


class TestModelsThatAreNot:
    def test_a_shape(self, probes: list[tuple[str, list[Path], float]]) -> None:
        found = look("llama-3.1-8b", PlanSettings(memory="3GiB"))
        assert weights(found) == 15_009_316_864
        [(_, [file], room), _] = probes
        assert not file.exists()
        plan = found.plan
        assert room == plan.ceiling - plan.process - plan.scratch - plan.allowance

    @pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize(("dtype", "nbytes"), [("bfloat16", 2), ("float16", 2), ("float32", 4), (None, 2)])
    def test_bytes_of_a_weight(self, monkeypatch: pytest.MonkeyPatch, key: str, dtype: str | None, nbytes: int) -> None:
        config = config_of(tie_word_embeddings=True)
        del config["torch_dtype"]
        on_hub(monkeypatch, config | {key: dtype})
        n_weights = 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 3 * 48 * 32) + 96 * 32
        assert weights(look("owner/model", PlanSettings())) == nbytes * n_weights

    def test_the_newer_name_of_the_type_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        on_hub(monkeypatch, config_of(dtype="float32", torch_dtype="bfloat16"))
        of_float32 = weights(look("owner/model", PlanSettings()))
        on_hub(monkeypatch, config_of())
        assert of_float32 == 2 * weights(look("owner/model", PlanSettings()))

    @pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", ["bfloat16"]])
    def test_types_that_are_not_run(self, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
        on_hub(monkeypatch, config_of(torch_dtype=dtype))
        with pytest.raises(UnsupportedError) as caught:
            look("owner/model", PlanSettings())
        shown = f"{dtype!r}"
        assert caught.value.problem == (
            f"config.json of owner/model on the Hub: torch_dtype is {shown}, so its weights are not BF16, F16 or F32"
        )
        assert caught.value.remedy == "Use the original full-precision checkpoint, in one of these."

    def test_long_prompts_go_in_chunks_where_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "footprint", lambda: Footprint(100 * MIB, 0))
        process = look("smollm2-135m", PlanSettings(memory="1GiB", threads=1)).plan.process
        found = look("smollm2-135m", PlanSettings(memory=process + 195 * MIB, threads=1, prompts=(16, 4096)))
        short, long = found.prompts[16], found.prompts[4096]
        assert short is not None
        assert long is not None
        assert (short.passes, long.passes > 1) == (1, True)
        assert long.bytes_read > weights(found)


class TestFirstToken:
    def test_a_chunk_is_what_a_pass_has_room_for(self, tmp_path: Path) -> None:
        with LLM.open(CASES["gqa-4"].write(tmp_path), memory="1GiB") as llm:
            budget = llm.memory.budget
            kv = llm.plan_pass(slots=100).kv
            plan = budget.plan(Demand(rows=100, kv=kv))
            assert outlook._first_token(budget, "bf16", 100, SPEEDS) == forecast_prompt(
                llm.config, plan, 100, 100, SPEEDS
            )

    def test_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the least chunk, though for one row there is."""
        with LLM.open(CASES["gqa-4"].write(tmp_path), memory="1GiB") as llm:

            def refuse(self: object, demand: Demand) -> None:
                raise MemoryCeilingError("no", "yes")

            monkeypatch.setattr(type(llm.memory.budget), "plan", refuse)
            assert outlook._first_token(llm.memory.budget, "bf16", 100, SPEEDS) is None


class TestFind:
    def test_a_directory_that_is_named_like_a_shape(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        CASES["gqa-4"].write(tmp_path / "llama-3.1-8b")
        monkeypatch.chdir(tmp_path)
        assert look("llama-3.1-8b", PlanSettings()).basis == "the model's own files"

    def test_a_name_that_nobody_knows(self) -> None:
        with pytest.raises(CheckpointError) as caught:
            look("no-such-model", PlanSettings())
        assert caught.value.remedy.endswith(f"Shapes are known by name too: {', '.join(SHAPES)}.")


class TestErrors:
    """All come before anything is measured."""

    @pytest.mark.parametrize("model", ["smollm2-135m", "demo"])
    @pytest.mark.parametrize(
        ("settings", "error", "words"),
        [
            (PlanSettings(memory="9MiB"), MemoryCeilingError, "too small"),
            (PlanSettings(memory="lots"), UsageError, "'lots' is not a size"),
            (PlanSettings(context=1), ContextError, "A context of 1 is out of range: the model was trained for"),
            (PlanSettings(context=10**9), ContextError, "A context of 1000000000 is out of range"),
            (PlanSettings(kv_dtype="int8"), UsageError, "kv_dtype='int8'"),
        ],
    )
    def test_what_cannot_be_planned(
        self,
        probes: list[tuple[str, list[Path], float]],
        model: str,
        settings: PlanSettings,
        error: type[UsageError],
        words: str,
    ) -> None:
        with pytest.raises(error) as caught:
            look(model, settings)
        assert words in caught.value.problem
        assert probes == []

    def test_an_empty_prompt(self) -> None:
        with pytest.raises(UsageError) as caught:
            PlanSettings(prompts=(16, 0))
        assert str(caught.value) == "A prompt has at least one token.\nRaise --prompt-tokens."
