from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from helpers.cases import CASES
from helpers.checkpoints import tensor_shapes, tiny_config, write_checkpoint
from penstock import LLM
from penstock.benchmarks import passes as benchmark
from penstock.benchmarks.passes import BenchSettings, Result, run
from penstock.checkpoints.store import find_model
from penstock.completion import Stats
from penstock.engine.engine import Engine
from penstock.errors import ContextError, MemoryCeilingError, UsageError
from penstock.events import Event
from penstock.models.pass_stats import PassTotals
from penstock.packing.pack import pack
from penstock.stages.probe import DiskSpeed, room_for_probe
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.system.sizes import MIB
from penstock.weights.weights import Weights


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the disk probe; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def measure_disk(paths: Any, **options: Any) -> DiskSpeed:
        asked.append({"paths": paths, **options})
        return DiskSpeed(1000, 0.5, 77)

    monkeypatch.setattr(benchmark, "measure_disk", measure_disk)
    return asked


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose size stays, so that ceilings a little above the least mean the same from run to run."""
    monkeypatch.setattr(machine, "footprint", lambda: Footprint(1000 * MIB, 0))


def least_ceiling() -> int:
    with pytest.raises(MemoryCeilingError) as caught:
        run("demo", BenchSettings(memory="1MiB"))
    match = re.search(r"least that works is (\d+) MiB", caught.value.remedy)
    assert match is not None
    return int(match[1]) * MIB


def check(result: Result, settings: BenchSettings) -> None:
    """What holds for every run."""
    assert len(result.seconds_per_pass) == settings.passes
    assert all(seconds > 0 for seconds in result.seconds_per_pass)
    assert min(result.seconds_per_pass) <= result.median_seconds_per_pass <= max(result.seconds_per_pass)
    assert result.first_token_seconds >= result.seconds_per_pass[0]
    assert result.first_pass_bytes_read >= result.weight_bytes
    assert result.peak_rss_bytes > 0
    assert result.tokens_per_second > 0
    assert result.disk_limit_seconds == result.streamed_bytes_per_pass / result.probe_bytes_per_second
    assert (result.batch, result.prompt_tokens) == (settings.batch, settings.prompt_tokens)


class TestRun:
    def test_a_model_that_fits(self) -> None:
        settings = BenchSettings(passes=4, threads=1)
        result = run("demo", settings)
        check(result, settings)
        with LLM.open("demo") as llm:
            assert result.weight_bytes == result.resident_bytes == llm.weights.pass_bytes
        assert (result.model, result.threads, result.prompt_passes) == ("demo", 1, 1)
        assert result.ratio_to_disk_limit is None
        assert result.streamed_bytes_per_pass == 0

    def test_nothing_streams_though_not_all_is_resident_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Weights, "resident_bytes", property(lambda self: self.pass_bytes - 1))
        assert run("demo", BenchSettings(passes=3)).ratio_to_disk_limit is None

    @pytest.mark.parametrize(("dtype", "stored"), [("BF16", 1), ("F16", 1), ("F32", 2)])
    def test_weights_count_as_bf16_and_as_they_are_stored(self, tmp_path: Path, dtype: str, stored: int) -> None:
        config = tiny_config(tie_word_embeddings=True)
        write_checkpoint(tmp_path, config, dtype=dtype)
        result = run(tmp_path, BenchSettings(passes=2))
        bf16 = 2 * sum(prod(shape) for shape in tensor_shapes(config).values() if len(shape) == 2)
        assert (result.weight_bytes, result.stored_bytes) == (bf16, stored * bf16)
        assert result.first_pass_bytes_read == result.resident_bytes == result.stored_bytes

    def test_packed_weights(self, tmp_path: Path) -> None:
        pack(find_model("demo"), tmp_path / "packed")
        raw, packed = (run(model, BenchSettings(passes=3)) for model in ("demo", tmp_path / "packed"))
        assert (raw.packed_ratio, raw.decoded_bytes_per_second) == (None, None)
        assert packed.weight_bytes == raw.weight_bytes == raw.stored_bytes
        assert packed.stored_bytes < 0.72 * packed.weight_bytes
        assert packed.stored_bytes < packed.resident_bytes < packed.weight_bytes, "not in indexed rows"
        assert packed.packed_ratio == packed.stored_bytes / packed.weight_bytes
        assert packed.decoded_bytes_per_second == packed.weight_bytes / packed.compute_seconds

    @pytest.mark.usefixtures("steady")
    def test_a_model_that_streams(self) -> None:
        settings = BenchSettings(passes=3, memory=least_ceiling() + 6 * MIB)
        result = run("demo", settings)
        check(result, settings)
        assert result.memory_ceiling_bytes == settings.memory
        assert 0 < result.resident_bytes < result.weight_bytes
        assert result.resident_share_of_memory == result.resident_bytes / result.memory_ceiling_bytes
        # A cache that grew within the pass may take a piece's room; the row of the embedding is read besides.
        streamed = result.weight_bytes - result.resident_bytes
        assert streamed <= result.streamed_bytes_per_pass + MIB
        assert result.streamed_bytes_per_pass <= streamed + MIB
        assert result.ratio_to_disk_limit == result.median_seconds_per_pass / result.disk_limit_seconds

    def test_the_probe_reads_the_models_files_within_the_ceiling(self, probes: list[dict[str, Any]]) -> None:
        result = run("demo", BenchSettings(passes=1, memory="16GiB"))
        [asked] = probes
        assert [path.name for path in asked["paths"]] == ["model.safetensors"]
        with LLM.open("demo", memory="16GiB") as llm:
            room = room_for_probe(llm.memory.budget)
        assert asked["memory"] == pytest.approx(room, abs=64 * MIB)  # the process has grown meanwhile
        assert (result.probe_bytes_per_second, result.probe_read_bytes) == (2000, 77)

    def test_only_the_prompt(self) -> None:
        settings = BenchSettings(passes=1)
        result = run("demo", settings)
        check(result, settings)
        assert result.median_seconds_per_pass == result.seconds_per_pass[0]

    def test_a_batch_shares_its_passes(self, tmp_path: Path) -> None:
        events: list[Event] = []
        settings = BenchSettings(passes=3, batch=4, prompt_tokens=5)
        check(run(CASES["gqa-4"].write(tmp_path), settings, listener=events.append), settings)
        assert [event.name for event in events if event.kind == "pass"] == ["20 rows", "4 rows", "4 rows"]

    def test_a_batch_whose_prompts_take_several_passes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark, "MAX_ROWS", 20)
        monkeypatch.setattr(Engine.__init__, "__defaults__", (20,))
        events: list[Event] = []
        settings = BenchSettings(passes=4, batch=5, prompt_tokens=6)
        result = run(CASES["gqa-4"].write(tmp_path), settings, listener=events.append)
        check(result, settings)
        spans = [event for event in events if event.kind == "pass"]
        # Three prompts and two tokens of the fourth; three tokens and the rest of the prompts; then all alike.
        assert [event.name for event in spans] == ["20 rows", "13 rows", "5 rows", "5 rows", "5 rows"]
        assert result.prompt_passes == 2
        prompt, *further = result.seconds_per_pass
        assert prompt >= sum(event.end - event.begin for event in spans[:2])
        for seconds, event in zip(further, spans[2:], strict=True):
            assert seconds >= event.end - event.begin
        assert result.median_seconds_per_pass == median(further)
        assert result.first_token_seconds >= spans[1].end - spans[0].begin

    def test_tokens_are_counted_from_the_last_first_token_on(self) -> None:
        early, late = (Stats(9, 0, seconds=20.0, first_token_seconds=first) for first in (4.0, 10.0))
        settings = BenchSettings(passes=6, batch=2)
        assert benchmark.tokens_per_second([early, late], settings) == 2 * 5 / (20 - 10)
        assert benchmark.tokens_per_second([early, late], replace(settings, passes=1)) == 2 / 20

    def test_of_a_batch_of_32_with_prompts_of_200_four_passes_are_decoding(self, tmp_path: Path) -> None:
        events: list[Event] = []
        settings = BenchSettings(passes=5, batch=32, prompt_tokens=200)
        result = run(CASES["gqa-4"].write(tmp_path), settings, listener=events.append)
        check(result, settings)
        assert [event.name for event in events if event.kind == "pass"] == ["4096 rows", "2324 rows", *["32 rows"] * 4]
        assert result.prompt_passes == 2

    @pytest.mark.usefixtures("steady")
    def test_a_long_prompt_takes_several_passes_where_memory_is_short(self) -> None:
        settings = BenchSettings(passes=3, prompt_tokens=2500, memory=least_ceiling() + 6 * MIB)
        result = run("demo", settings)
        check(result, settings)
        assert result.prompt_passes > 1
        assert result.first_pass_bytes_read > 1.5 * result.weight_bytes

    def test_the_type_of_the_cache_reaches_the_model(self) -> None:
        with pytest.raises(UsageError, match="kv_dtype='int8'"):
            run("demo", BenchSettings(kv_dtype="int8"))

    def test_progress(self) -> None:
        told: list[str] = []
        run("demo", BenchSettings(passes=2), tell=told.append)
        assert told[:3] == ["opening", "measuring the disk", "pass 1 of 2, layer 0"]
        assert "pass 2 of 2, layer 0" in told

    def test_as_an_object(self) -> None:
        result = run("demo", BenchSettings(passes=2))
        assert Result(**json.loads(json.dumps(result.as_object()))) == result


class TestErrors:
    @pytest.mark.parametrize("name", ["passes", "prompt_tokens", "batch"])
    def test_counts(self, name: str) -> None:
        option = "--" + name.replace("_", "-")
        with pytest.raises(UsageError) as caught:
            replace(BenchSettings(), **{name: 0})
        assert str(caught.value) == f"{option} 0: at least 1 is needed.\nRaise {option}."

    def test_more_than_the_context(self, tmp_path: Path, probes: list[dict[str, Any]]) -> None:
        path = CASES["gqa-4"].write(tmp_path)
        check(run(path, BenchSettings(passes=2, prompt_tokens=510)), BenchSettings(passes=2, prompt_tokens=510))
        with pytest.raises(ContextError) as caught:
            run(path, BenchSettings(passes=3, prompt_tokens=510))
        assert caught.value.problem == "510 tokens and 3 passes are more than the context of 512."
        assert caught.value.remedy == "Lower --prompt-tokens or --passes."
        assert len(probes) == 1  # nothing is measured in vain

    def test_more_sequences_than_rows(self, tmp_path: Path) -> None:
        path = CASES["gqa-4"].write(tmp_path)
        with pytest.raises(UsageError) as caught:
            run(path, BenchSettings(passes=2, prompt_tokens=2, batch=4096))
        assert caught.value.problem == (
            "A pass has room for 4096 rows: too few for 4096 sequences and what is left of their prompts."
        )
        assert caught.value.remedy == "Lower --batch or --prompt-tokens, or raise --memory."

    @pytest.mark.usefixtures("steady")
    def test_sequences_that_would_have_to_wait_for_each_other(self) -> None:
        memory, events = least_ceiling() + 8 * MIB, list[Event]()
        check(run("demo", BenchSettings(passes=2, memory=memory)), BenchSettings(passes=2))
        with pytest.raises(MemoryCeilingError) as caught:
            run("demo", BenchSettings(passes=2, prompt_tokens=1000, batch=8, memory=memory), listener=events.append)
        assert caught.value.problem.startswith("The keys and values of 8000 prompt tokens and ")
        assert "new ones for each of 8 prompts, " in caught.value.problem
        assert "raise --memory" in caught.value.remedy
        assert not [event for event in events if event.kind == "pass"]

    def test_too_few_passes_that_all_sequences_share(self) -> None:
        """As where the first sequences end before the last ones' prompts are done."""
        costs = {"seconds": 1.0, "read_seconds": 0.0, "wait_seconds": 0.0, "compute_seconds": 1.0}
        totals = PassTotals(rows=2, logits=True, bytes_read=0, draft_seconds=0.0, guesses=0, **costs)
        stats = [Stats(9, 0, tokens=tokens, log=[totals] * tokens) for tokens in (5, 3)]
        with pytest.raises(UsageError) as caught:
            benchmark.split_log(stats, BenchSettings(passes=4, batch=2))
        assert caught.value.problem == "There is room for 3 tokens of each of the 2 sequences, not for 4."
        assert caught.value.remedy == "Lower --batch, --prompt-tokens or --passes, or raise --memory."
        assert [len(part) for part in benchmark.split_log(stats, BenchSettings(passes=3, batch=2))] == [3, 2]
