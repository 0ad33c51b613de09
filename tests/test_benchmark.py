from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import CASES

from penstock import LLM, benchmark
from penstock.benchmark import Result, Settings, run
from penstock.errors import ContextError, MemoryCeilingError, UsageError
from penstock.events import Event
from penstock.plan import MIB
from penstock.probe import DiskSpeed


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the disk probe; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def measure_disk(paths: Any, **options: Any) -> DiskSpeed:
        asked.append({"paths": paths, **options})
        return DiskSpeed(1000, 0.5)

    monkeypatch.setattr(benchmark, "measure_disk", measure_disk)
    return asked


def least_ceiling() -> int:
    with pytest.raises(MemoryCeilingError) as caught:
        run("demo", Settings(memory="1MiB"))
    match = re.search(r"least that works is (\d+) MiB", caught.value.remedy)
    assert match is not None
    return int(match[1]) * MIB


def check(result: Result, settings: Settings) -> None:
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
        settings = Settings(passes=4, threads=1)
        result = run("demo", settings)
        check(result, settings)
        with LLM.open("demo") as llm:
            assert result.weight_bytes == result.resident_bytes == llm.weights.pass_bytes
        assert (result.model, result.threads, result.prompt_passes) == ("demo", 1, 1)
        assert result.ratio_to_disk_limit is None
        assert result.streamed_bytes_per_pass < 4096  # a row of the embedding at most

    def test_a_model_that_streams(self) -> None:
        settings = Settings(passes=3, memory=least_ceiling() + 6 * MIB)
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
        result = run("demo", Settings(passes=1, memory="600MiB"))
        [asked] = probes
        assert [path.name for path in asked["paths"]] == ["model.safetensors"]
        assert 0 < asked["memory"] < 600 * MIB
        assert result.probe_bytes_per_second == 2000

    def test_only_the_prompt(self) -> None:
        settings = Settings(passes=1)
        result = run("demo", settings)
        check(result, settings)
        assert result.median_seconds_per_pass == result.seconds_per_pass[0]

    def test_a_batch_shares_its_passes(self, tmp_path: Path) -> None:
        events: list[Event] = []
        settings = Settings(passes=3, batch=4, prompt_tokens=5)
        check(run(CASES["gqa-4"].write(tmp_path), settings, listener=events.append), settings)
        assert [event.name for event in events if event.kind == "pass"] == ["20 rows", "4 rows", "4 rows"]

    def test_a_long_prompt_takes_several_passes_where_memory_is_short(self) -> None:
        settings = Settings(passes=3, prompt_tokens=2500, memory=least_ceiling() + 6 * MIB)
        result = run("demo", settings)
        check(result, settings)
        assert result.prompt_passes > 1
        assert result.first_pass_bytes_read > 1.5 * result.weight_bytes

    def test_the_type_of_the_cache_reaches_the_model(self) -> None:
        with pytest.raises(UsageError, match="kv_dtype='int8'"):
            run("demo", Settings(kv_dtype="int8"))

    def test_progress(self) -> None:
        told: list[str] = []
        run("demo", Settings(passes=2), tell=told.append)
        assert told[:3] == ["opening", "measuring the disk", "pass 1 of 2, layer 0"]
        assert "pass 2 of 2, layer 0" in told

    def test_as_an_object(self) -> None:
        result = run("demo", Settings(passes=2))
        assert Result(**json.loads(json.dumps(result.as_object()))) == result


class TestErrors:
    @pytest.mark.parametrize("name", ["passes", "prompt_tokens", "batch"])
    def test_counts(self, name: str) -> None:
        option = "--" + name.replace("_", "-")
        with pytest.raises(UsageError) as caught:
            replace(Settings(), **{name: 0})
        assert str(caught.value) == f"{option} 0: at least 1 is needed.\nRaise {option}."

    def test_more_than_the_context(self, tmp_path: Path, probes: list[dict[str, Any]]) -> None:
        path = CASES["gqa-4"].write(tmp_path)
        check(run(path, Settings(passes=2, prompt_tokens=510)), Settings(passes=2, prompt_tokens=510))
        with pytest.raises(ContextError) as caught:
            run(path, Settings(passes=3, prompt_tokens=510))
        assert caught.value.problem == "510 tokens and 3 passes are more than the context of 512."
        assert caught.value.remedy == "Lower --prompt-tokens or --passes."
        assert len(probes) == 1  # nothing is measured in vain
