from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import CASES
from helpers.checkpoints import tiny_config
from helpers.tuning import tune_to
from penstock import LLM
from penstock.checkpoints.store import find_model
from penstock.errors import CheckpointError, ContextError, MemoryCeilingError, UnsupportedError, UsageError
from penstock.forecast import outlook
from penstock.forecast.outlook import Outlook, PlanSettings, look
from penstock.forecast.seconds import forecast_prompt, forecast_token
from penstock.memory.budget import Demand
from penstock.packing.pack import pack
from penstock.stages.probe import DiskSpeed, DraftSpeed, room_for_probe
from penstock.stages.rates import ComputeSpeed, Rates
from penstock.synth.shapes import SHAPES
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.system.sizes import MIB
from penstock.weights.sizes import Matrix, StoredSize

SPEEDS = Rates(disk_bytes=500e6, row_bytes=20e9, flops=100e9, indexed_bytes=15e9)
COMPUTE = ComputeSpeed(20e9, 100e9, 10e9, 80e9, 15e9)
DRAFTING = DraftSpeed(40e9, 20e9, 30e9, 15e9)


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
        return COMPUTE

    monkeypatch.setattr(outlook, "measure_disk", measure_disk)

    def measure_drafting(kernels: object, *, memory: float) -> DraftSpeed:
        ran.append(("drafting", [], memory))
        return DRAFTING

    monkeypatch.setattr(outlook, "measure_compute", measure_compute)
    monkeypatch.setattr(outlook, "measure_drafting", measure_drafting)
    monkeypatch.setattr(outlook, "PROBE_FILE_BYTES", MIB)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "store"))
    return ran


def weights(found: Outlook) -> int:
    return found.own.plan.resident + found.own.plan.streamed


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
            assert weights(found) == found.own.plan.resident == llm.weights.pass_bytes
        assert (found.subject.basis, found.subject.kernels.threads, found.own.plan.ceiling) == (
            "the model's own files",
            1,
            16 << 30,
        )
        assert (found.context, found.most_context) == (512, 512)
        assert found.own.token == forecast_token(found.own.plan, SPEEDS)
        first = found.own.prompts[16]
        assert first is not None
        assert first.bytes_read == weights(found)
        assert found.own.prompts[600] is None  # of 512 positions

    def test_the_probes_stay_within_the_ceiling(
        self, tmp_path: Path, probes: list[tuple[str, list[Path], float]]
    ) -> None:
        path = CASES["shards"].write(tmp_path / "model")
        found = look(str(path), PlanSettings(memory="16GiB"))
        with LLM.open(path, memory="16GiB") as llm:
            room = room_for_probe(llm.memory.budget)
        (disk, paths, disk_room), (compute, _, compute_room), (drafting, _, drafting_room) = probes
        assert (disk, compute, drafting) == ("disk", "compute", "drafting")
        assert [file.name for file in paths] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        plan = found.own.plan
        assert disk_room == compute_room == drafting_room == plan.ceiling - plan.process - plan.scratch - plan.allowance
        assert disk_room == pytest.approx(room, abs=64 * MIB)  # the process has grown meanwhile

    def test_as_an_object(self, tmp_path: Path) -> None:
        found = look(str(CASES["gqa-4"].write(tmp_path / "model")), PlanSettings(prompts=(9,)))
        said = json.loads(json.dumps(found.as_object()))
        assert (said["disk_bytes_per_second"], said["probe_read_bytes"]) == (500e6, 12_288)
        assert (said["row_bytes_per_second"], said["flops_per_second"]) == (20e9, 100e9)
        assert said["seconds_per_token"] == found.own.token.seconds
        assert said["first_token"]["9"]["passes"] == 1
        assert said["memory"]["tokenizer"] == found.subject.tokenizer


class TestModelsThatAreNot:
    def test_a_shape(self, probes: list[tuple[str, list[Path], float]]) -> None:
        found = look("llama-3.1-8b", PlanSettings(memory="3GiB"))
        assert weights(found) == 15_009_316_864
        [(_, [file], room), *_] = probes
        assert not file.exists()
        plan = found.own.plan
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
        process = look("smollm2-135m", PlanSettings(memory="1GiB", threads=1)).own.plan.process
        found = look("smollm2-135m", PlanSettings(memory=process + 195 * MIB, threads=1, prompts=(16, 4096)))
        short, long = found.own.prompts[16], found.own.prompts[4096]
        assert short is not None
        assert long is not None
        assert (short.passes, long.passes > 1) == (1, True)
        assert long.bytes_read > weights(found)


class TestForms:
    def test_a_shape_raw_and_packed(self) -> None:
        found = look("llama-3.1-8b", PlanSettings(memory="3GiB", prompts=(16, 512)))
        assert (found.subject.form, found.subject.place, found.subject.packs) == ("raw", "shape", True)
        assert found.own is found.forms["raw"]
        assert found.forms["packed"] is not None
        raw, packed = found.own, found.forms["packed"]
        assert (raw.size.estimated, packed.size.estimated) == (False, True)
        assert raw.plan.resident + raw.plan.streamed == raw.size.nbytes == found.subject.weight_bytes
        assert packed.plan.resident + packed.plan.streamed == packed.size.nbytes
        assert packed.size.nbytes == pytest.approx(0.6731 * raw.size.nbytes, rel=1e-3)
        assert packed.plan.resident == pytest.approx(raw.plan.resident, rel=0.01)
        assert packed.token == forecast_token(packed.plan, Rates.of(packed.size, 500e6, COMPUTE))
        assert packed.token.compute_seconds == pytest.approx(
            found.subject.weight_bytes / COMPUTE.packed_row_bytes_per_second
        )
        for tokens in (16, 512):
            first = packed.prompts[tokens]
            assert first is not None
            assert first.bytes_read == packed.size.nbytes

    @pytest.mark.parametrize("name", ["f16", "f32", "gqa-4"])
    def test_nothing_to_pack(self, tmp_path: Path, name: str) -> None:
        found = look(str(CASES[name].write(tmp_path)), PlanSettings())
        assert (found.subject.form, found.subject.packs, found.forms["packed"]) == ("raw", False, None)
        assert found.as_object()["packed"] is None

    def test_types_that_do_not_pack_ahead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        on_hub(monkeypatch, SHAPES["smollm2-135m"] | {"torch_dtype": "float16"})
        found = look("owner/model", PlanSettings(memory="4GiB"))
        assert (found.subject.place, found.subject.packs, found.forms["packed"]) == ("hub", False, None)

    def test_a_raw_model_and_its_packed_copy(self, tmp_path: Path) -> None:
        """Either is exact about what it is, and tells the same of the raw one."""
        pack(find_model("demo"), tmp_path / "packed")
        before, after = (look(model, PlanSettings(memory="16GiB")) for model in ("demo", str(tmp_path / "packed")))
        assert (before.subject.form, before.subject.place, after.subject.form, after.subject.place) == (
            "raw",
            "here",
            "packed",
            "here",
        )
        assert before.forms["raw"] is not None
        assert before.forms["packed"] is not None
        assert after.forms["raw"] is not None
        assert after.own is after.forms["packed"]
        assert before.forms["raw"].size == after.forms["raw"].size
        assert before.subject.weight_bytes == after.subject.weight_bytes == before.forms["raw"].size.nbytes
        assert (before.forms["packed"].size.estimated, after.own.size.estimated) == (True, False)
        assert after.own.size.nbytes == pytest.approx(before.forms["packed"].size.nbytes, rel=0.02)
        with LLM.open(tmp_path / "packed", draft="none") as llm:
            assert after.own.size.nbytes == llm.weights.pass_bytes == after.own.plan.weights
            assert after.own.size.indexed == pytest.approx(llm.weights.indexed_bytes, rel=1e-6)
            assert after.own.size.chunk == llm.memory.budget.chunk

    def test_the_other_form_does_not_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_large(matrices: Sequence[Matrix]) -> StoredSize:
            return StoredSize(10**6, 10**6, decoded=10**6, chunk=1 << 40)

        monkeypatch.setattr(outlook, "packed_size", too_large)
        found = look("demo", PlanSettings(memory="4GiB"))
        assert (found.subject.packs, found.forms["packed"]) == (True, None)

    def test_as_an_object(self) -> None:
        said = json.loads(json.dumps(look("llama-3.1-8b", PlanSettings(memory="3GiB", prompts=(9,))).as_object()))
        raw, packed = said["raw"], said["packed"]
        assert (said["form"], said["weight_bytes"]) == ("raw", raw["stored_bytes"])
        assert (raw["estimated"], packed["estimated"]) == (False, True)
        assert {key: said[key] for key in ("seconds_per_token", "token", "first_token")}.items() <= raw.items()
        assert raw["streamed_bytes_per_pass"] == said["memory"]["streamed"] == raw["token"]["bytes_read"]
        for form in (raw, packed):
            assert form["resident_bytes"] + form["streamed_bytes_per_pass"] == form["stored_bytes"]
            assert form["first_token"]["9"]["bytes_read"] == form["stored_bytes"]
        assert (raw["coarse_bytes"], packed["coarse_bytes"]) == (0, 15_009_316_864 * 3 // 16)
        assert (said["packed_row_bytes_per_second"], said["packed_flops_per_second"]) == (10e9, 80e9)


class TestGuesses:
    def test_of_a_shape(self) -> None:
        """Raw there is nothing to guess with; packed, and with a draft, there is."""
        found = look("llama-3.1-8b", PlanSettings(memory="4GiB", context=512, draft="llama-3.2-1b"))
        assert found.forms["packed"] is not None
        raw, packed = found.own.guesses, found.forms["packed"].guesses
        assert raw is not None
        assert packed is not None
        assert raw.own is not None
        assert packed.own is not None
        assert (raw.own.tier_layers, packed.own.tier_layers) == (0, 32)
        assert raw.draft == packed.draft == "llama-3.2-1b"
        assert raw.drafted is not None
        assert raw.drafted.drafters == ("draft", "draft")
        assert raw.pays == (True, True)
        assert raw.drafted.forecasts[0].seconds_per_token < found.own.token.seconds

    def test_what_tuning_left_is_counted(self, tmp_path: Path) -> None:
        pack(find_model("demo"), tmp_path / "packed")
        shares = []
        for tuned in (False, True):
            nbytes = sum(one.nbytes for one in tune_to(tmp_path / "packed", 80).values()) if tuned else 0
            guesses = look(str(tmp_path / "packed"), PlanSettings(memory="4GiB")).own.guesses
            assert guesses is not None
            assert guesses.own is not None
            shares.append(guesses.own.plan.draft - nbytes)
            assert (nbytes > 0) == tuned
        assert shares[0] == shares[1]

    def test_of_a_packed_model_that_is_here(self, tmp_path: Path) -> None:
        """Its coarse tier is counted, and the plan without guesses has no part in it."""
        pack(find_model("demo"), tmp_path / "packed")
        found = look(str(tmp_path / "packed"), PlanSettings(memory="4GiB", draft="demo"))
        assert found.own.plan.draft == 0
        guesses = found.own.guesses
        assert guesses is not None
        assert guesses.own is not None
        size = found.own.size
        assert guesses.own.tier_bytes == size.coarse + size.raw - size.decoded  # what is not packed is there as it is
        assert guesses.own.tier_layers == guesses.own.layers == 6
        assert guesses.drafted is not None
        assert guesses.drafted.draft_form == "whole"
        assert found.forms["raw"] is not None
        assert found.forms["raw"].guesses is not None
        assert found.forms["raw"].guesses.own is not None
        assert found.forms["raw"].guesses.own.tier_bytes == 0

    def test_none(self) -> None:
        found = look("demo", PlanSettings(draft="none"))
        assert found.own.guesses is None
        assert found.as_object()["guesses"] is None

    def test_another_tokenizer_comes_before_any_measurement(self, probes: list[tuple[str, list[Path], float]]) -> None:
        with pytest.raises(UsageError, match="has a vocabulary of 49152 tokens, and the model has 4096"):
            look("demo", PlanSettings(draft="smollm2-135m"))
        assert probes == []

    def test_a_draft_that_nobody_knows(self) -> None:
        with pytest.raises(CheckpointError, match="no-such-draft"):
            look("demo", PlanSettings(draft="no-such-draft"))


class TestFirstToken:
    def test_a_chunk_is_what_a_pass_has_room_for(self, tmp_path: Path) -> None:
        with LLM.open(CASES["gqa-4"].write(tmp_path), memory="4GiB") as llm:
            budget = llm.memory.budget
            kv = llm.plan_pass(slots=100).kv
            plan = budget.plan(Demand(rows=100, kv=kv))
            assert outlook.first_token(budget, PlanSettings(), 100, SPEEDS) == forecast_prompt(
                llm.architecture, plan, 100, 100, SPEEDS
            )

    def test_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the least chunk, though for one row there is."""
        with LLM.open(CASES["gqa-4"].write(tmp_path), memory="4GiB") as llm:

            def refuse(self: object, demand: Demand) -> None:
                raise MemoryCeilingError("no", "yes")

            monkeypatch.setattr(type(llm.memory.budget), "plan", refuse)
            assert outlook.first_token(llm.memory.budget, PlanSettings(), 100, SPEEDS) is None


class TestFind:
    def test_a_directory_that_is_named_like_a_shape(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        CASES["gqa-4"].write(tmp_path / "llama-3.1-8b")
        monkeypatch.chdir(tmp_path)
        assert look("llama-3.1-8b", PlanSettings()).subject.basis == "the model's own files"

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
            ({"memory": "9MiB"}, MemoryCeilingError, "too small"),
            ({"memory": "lots"}, UsageError, "'lots' is not a size"),
            ({"context": 1}, ContextError, "A context of 1 is out of range: the model was trained for"),
            ({"context": 10**9}, ContextError, "A context of 1000000000 is out of range"),
            ({"kv_dtype": "int8"}, UsageError, "kv_dtype='int8'"),
        ],
    )
    def test_what_cannot_be_planned(
        self,
        probes: list[tuple[str, list[Path], float]],
        model: str,
        settings: dict[str, Any],
        error: type[UsageError],
        words: str,
    ) -> None:
        with pytest.raises(error) as caught:
            look(model, PlanSettings(**settings))
        assert words in caught.value.problem
        assert probes == []

    def test_an_empty_prompt(self) -> None:
        with pytest.raises(UsageError) as caught:
            PlanSettings(prompts=(16, 0))
        assert str(caught.value) == "A prompt has at least one token.\nRaise --prompt-tokens."
