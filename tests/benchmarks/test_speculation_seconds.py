from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, PenstockError
from penstock.benchmarks import seconds as speculation_seconds
from penstock.benchmarks.seconds import (
    SecondsSettings,
    SimulatedResult,
    decode_random_text,
    parse_chances,
    run_random,
    run_simulated,
    say_chances,
)
from penstock.benchmarks.timed_decoding import Decoding, guessing
from penstock.checkpoints.store import find_model
from penstock.errors import ContextError, UsageError
from penstock.packing.pack import pack


def settings(**changes: Any) -> SecondsSettings:
    return SecondsSettings(**{"prompt_tokens": 5, "tokens": 24, "repeats": 2, "threads": 1} | changes)


@pytest.fixture(scope="module")
def simulated() -> SimulatedResult:
    return run_simulated("demo", settings(draft="demo", draft_nodes=6), [[[0.9, 0.1]], [[0.01]]])


class TestSimulated:
    def test_acceptance_is_as_was_said(self, simulated: SimulatedResult) -> None:
        good, bad = simulated.simulations
        assert (good.simulated_chances, bad.simulated_chances) == ([[0.9, 0.1]], [[0.01]])
        assert good.total.tokens_per_pass > 2 > 1.5 > bad.total.tokens_per_pass >= 1
        assert 0 < good.total.nodes_per_pass <= 6
        assert simulated.drafter == "draft"
        assert simulated.identical

    def test_all_repeats_together(self, simulated: SimulatedResult) -> None:
        for simulation in simulated.simulations:
            total, repeats = simulation.total, simulation.repeats
            assert len(repeats) == 2
            assert all(18 <= each.tokens < 18 + 7 for each in repeats)
            for name in ("tokens", "passes", "seconds"):
                assert getattr(total, name) == pytest.approx(sum(getattr(each, name) for each in repeats))
            assert total.seconds_per_token == total.seconds / total.tokens
            assert 0 < total.draft_seconds_per_pass < total.seconds_per_pass

    def test_the_plain_run(self, simulated: SimulatedResult) -> None:
        assert simulated.plain.passes == 24
        assert simulated.plain.median_seconds > 0
        assert simulated.plain.resident_bytes > 0

    def test_it_is_labelled(self, simulated: SimulatedResult) -> None:
        said = json.loads(json.dumps(simulated.as_object()))
        assert said["measures"] == "seconds a token with SIMULATED acceptance"
        assert said["simulations"][0]["simulated_chances"] == [[0.9, 0.1]]
        assert said["peak_rss_bytes"] > 0

    def test_a_models_own_coarse_tier(self, tmp_path: Path) -> None:
        pack(find_model("demo"), tmp_path / "packed")
        result = run_simulated(tmp_path / "packed", settings(repeats=1, draft_nodes=3), [[[0.8]]])
        assert (result.drafter, result.draft) == ("coarse", None)
        assert result.simulations[0].total.nodes_per_pass > 0

    def test_no_drafter(self) -> None:
        with pytest.raises(UsageError, match="no drafter whose cost could be paid") as error:
            run_simulated("demo", settings(), [[[0.5]]])
        assert "--draft" in error.value.remedy

    def test_another_token_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = speculation_seconds.decode

        def wrong(llm: LLM, *arguments: Any) -> Decoding:
            run = decode(llm, *arguments)
            if llm.engine.speculator.drafters:
                run.token_ids[1] += 1
            return run

        monkeypatch.setattr(speculation_seconds, "decode", wrong)
        with pytest.raises(PenstockError, match=r"Simulated acceptance 0.5, run 1: token 1 is"):
            run_simulated("demo", settings(draft="demo", tokens=4), [[[0.5]]])


class TestRandom:
    def test_what_guessing_costs(self) -> None:
        result = run_random("demo", settings(draft="demo", draft_nodes=2))
        assert (result.plain.passes, result.guessed.passes, result.guessed.tokens) == (16, 24, 24)
        assert result.right == 0
        assert {"lookup", "draft"} <= set(result.drafters)
        assert result.guessed.nodes_per_pass > 0
        assert result.ratio == pytest.approx(result.guessed.seconds / (24 * result.plain.median_seconds))
        assert json.loads(json.dumps(result.as_object()))["measures"] == "the cost of guessing on random text"

    def test_text_that_no_model_would_write(self) -> None:
        with LLM.open("demo", threads=1) as llm, guessing(llm):
            first, second = (decode_random_text(llm, [1, 2, 3], 40).token_ids for _ in range(2))
        assert first == second
        assert len(set(first)) > 35


def test_a_context_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContextError, match="5 tokens and 10000000 more"):
        run_random("demo", settings(tokens=10_000_000))


@pytest.mark.parametrize("name", ["prompt_tokens", "tokens", "repeats"])
def test_settings_that_cannot_be_meant(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} 0: at least 1"):
        settings(**{name: 0})


def test_chances() -> None:
    assert parse_chances("0.70,0.12,0.05") == [[0.7, 0.12, 0.05]]
    assert parse_chances("1") == [[1.0]]
    assert parse_chances("0.5,0.25;0.75;1") == [[0.5, 0.25], [0.75], [1.0]]
    assert say_chances(parse_chances("0.5,0.25;0.75;1")) == "0.5,0.25;0.75;1"


@pytest.mark.parametrize("text", ["", "much", "0.5,", "0.7,0.4", "0,0.5", "-0.5", "nan", "0.1," * 8 + "0.1"])
def test_what_are_no_chances(text: str) -> None:
    with pytest.raises(UsageError, match="not chances of a first, second") as error:
        parse_chances(text)
    assert "0.70,0.12,0.05" in error.value.remedy
