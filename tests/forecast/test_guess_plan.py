from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.rooms import keep_at_most
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.registry import parse_config
from penstock.checkpoints.store import find_model
from penstock.errors import MemoryCeilingError
from penstock.forecast.draft_shape import DraftShape, draft_ahead, draft_here
from penstock.forecast.guess_forecast import forecast_guesses
from penstock.forecast.guess_plan import (
    ASSUMED,
    Guessing,
    GuessSubject,
    guess_budget,
    kept_layers,
    plan_guesses,
    tiers_ahead,
    tiers_here,
)
from penstock.forecast.seconds import forecast_token
from penstock.memory.budget import Budget, Demand
from penstock.models.kv_planes import KvShape
from penstock.packing.pack import pack
from penstock.speculate.coarse import CoarseWeights
from penstock.speculate.grow import MOST_NODES
from penstock.stages.probe import DraftSpeed
from penstock.stages.rates import Rates
from penstock.synth.shapes import shape_config
from penstock.system import machine
from penstock.system.sizes import MIB
from penstock.weights.residency import draft_order
from penstock.weights.sizes import StoredSize, packed_size, pass_matrices, raw_size, size_here

RATES = Rates(disk_bytes=524e6, row_bytes=13.4e9, flops=200e9, indexed_bytes=15e9)
SPEED = DraftSpeed(40e9, 20e9, 30e9, 15e9)
LLAMA_8B = parse_config(shape_config("llama-3.1-8b"), "shape")
ARCHITECTURE = Architecture(LLAMA_8B)
LLAMA_1B = parse_config(shape_config("llama-3.2-1b"), "shape")


def subject(
    ceiling: int, *, config: ModelConfig = LLAMA_8B, packed: bool = True, context: int = 512, **rates: float
) -> GuessSubject:
    """A shape, raw or packed, on a machine of round numbers."""
    matrices = pass_matrices(config)
    size = packed_size(matrices) if packed else raw_size(matrices)
    assert size is not None
    return GuessSubject(
        budget=Budget(
            architecture=Architecture(config),
            weights=size.nbytes,
            ceiling=ceiling,
            process=170 * MIB,
            scratch=8 * MIB,
            chunk=size.chunk,
            indexed=size.indexed,
        ),
        size=size,
        tiers=tiers_ahead(matrices) if packed else {},
        kv_shape=KvShape.of(config, "bf16"),
        context=context,
        rates=replace(RATES, **rates),
        speed=SPEED,
    )


def draft_1b(config: ModelConfig = LLAMA_8B) -> DraftShape:
    return draft_ahead("llama-3.2-1b", LLAMA_1B, config, "bf16")


def own(found: GuessSubject) -> Guessing:
    guessing = plan_guesses(found, 1.0).own
    assert guessing is not None
    return guessing


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("packed") / "demo"
    pack(find_model("demo"), path)
    return path


class TestTheEnginesNumbers:
    """An open model has the same budget, and its coarse drafter the same layers."""

    @pytest.fixture(params=["packed", "raw"])
    def path(self, request: pytest.FixtureRequest, packed: Path) -> Path:
        return packed if request.param == "packed" else find_model("demo")

    def subject_of(self, path: Path, ceiling: int) -> tuple[GuessSubject, StoredSize]:
        with LLM.open(path, memory=ceiling, draft="none", threads=1) as llm:
            tensors = [llm.weights.tensors[name] for name in llm.architecture.pass_order]
            size, shape = size_here(tensors), llm.kv_shape
            budget, tiers = replace(llm.memory.budget, draft=0), tiers_here(tensors)
            return GuessSubject(budget, size, tiers, shape, 32, RATES, SPEED), size

    @pytest.mark.parametrize("draft", [None, "demo"])
    @pytest.mark.parametrize("ceiling", [400 * MIB, 4 << 30])
    def test_the_same_budget(
        self, path: Path, draft: str | None, ceiling: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Other tests have brought who knows what into this process.
        monkeypatch.setattr(machine, "footprint", lambda: machine.Footprint(100 * MIB, 40 * MIB))
        found, size = self.subject_of(path, ceiling)
        with LLM.open(path, memory=ceiling, threads=1, draft=draft) as llm:
            shape = draft and draft_here(draft, find_model(draft), llm.config, path, llm.kernels, "bf16")
            budget, form = guess_budget(found, shape or None)
            opened = llm.memory.budget
            assert replace(budget, process=0) == replace(opened, process=0)
            assert (form is None) == (draft is None)
            if size.decoded:
                assert sum(found.tiers.values()) == llm.weights.draft_bytes
            else:
                assert llm.weights.draft_bytes == 0

    @pytest.mark.parametrize("share", quick([0.0, 0.8, 1.0], [0.0, 0.3, 0.6, 0.8, 0.9, 0.97, 1.0, 2.0]))
    def test_the_same_layers(self, packed: Path, share: float) -> None:
        """Of a model whose weights may take a share of what its coarse tier does."""
        found, _ = self.subject_of(packed, 4 << 30)
        resident = int(share * sum(found.tiers.values()))
        with LLM.open(packed, memory="4GiB", threads=1) as llm:
            keep_at_most(llm, resident)
            llm.weights.indexed_bytes = 0
            llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=2))
            coarse = CoarseWeights(llm.weights, llm.kernels)
            layers = range(llm.config.num_hidden_layers)
            there = [layer for layer in layers if coarse.load_all(llm.architecture.layer_matrices(layer))]
            ready = coarse.load(llm.architecture.head) and len(there) >= 0.75 * len(layers)
        assert sorted(kept_layers(found, resident)) == (there if ready else [])
        assert (share < 0.6) <= (not ready)
        assert (share >= 1.0) <= bool(ready and len(there) == len(layers))


class TestTheCoarseTier:
    @pytest.mark.parametrize(("gib", "layers"), [(4, 32), (2, 0)])
    def test_it_stays_or_not(self, gib: int, layers: int) -> None:
        guessing = own(subject(gib << 30))
        assert guessing.tier_bytes == sum(matrix.nbytes * 3 // 16 for matrix in pass_matrices(LLAMA_8B))
        assert (guessing.tier_layers, guessing.layers) == (layers, 32)
        assert guessing.drafters == ("coarse" if layers else "",) * 2

    def test_layers_leave_one_by_one(self) -> None:
        subjects = [subject(ceiling * MIB) for ceiling in range(2200, 3600, 20)]
        found = [own(each) for each in subjects]
        counts = [guessing.tier_layers for guessing in found]
        assert counts == sorted(counts)
        assert {0, 24, 32} <= set(counts) <= {0, *range(24, 33)}
        for each, guessing in zip(subjects, found, strict=True):
            tiers = dict(zip(draft_order(ARCHITECTURE), (0,) * 999, strict=False)) | tiers_ahead(
                pass_matrices(LLAMA_8B)
            )
            layer = sum(tiers[name] for name in ARCHITECTURE.layer_matrices(0))
            if guessing.tier_layers:
                kept = each.common_head + guessing.tier_layers * layer
                assert kept <= guessing.plan.resident
                assert guessing.tier_layers == 32 or kept + layer > guessing.plan.resident

    def test_a_raw_model_has_none(self) -> None:
        guessing = own(subject(3 << 30, packed=False))
        assert (guessing.tier_bytes, guessing.tier_layers, guessing.most_guesses) == (0, 0, 0)
        assert guessing.drafters == ("", "")
        plain = forecast_token(guessing.plan, RATES)
        assert [f.seconds_per_token for f in guessing.forecasts] == [plain.seconds] * 2


class TestMemory:
    def test_what_guessing_takes(self) -> None:
        found = subject(4 << 30)
        guessing = own(found)
        budget, _ = guess_budget(found, None)
        slot = 2 * found.kv_shape.block_bytes // 32
        kv, most = found.kv_shape.bytes_for(512 + 32), guessing.most_guesses
        fitting = budget.most_guesses(kv, 1, 1, slot, found.least_tier_bytes, logits=False)
        assert 64 <= most == min(fitting, MOST_NODES)
        assert guessing.plan == budget.plan(Demand(1 + most, 1, kv + most * slot, most))
        assert guessing.plan.draft == budget.draft > 1_500_000 * 8  # scales and magnitudes of every row
        assert guessing.guess_bytes <= 0.05 * (4 << 30)
        assert (guessing.draft_form, guessing.draft_bytes, guessing.draft_kv) == (None, 0, 0)

    def test_a_draft_and_its_cache(self) -> None:
        found, draft = subject(3 << 30, packed=False), draft_1b()
        guessing = plan_guesses(found, 1.0, draft).drafted
        assert guessing is not None
        assert guessing.draft_form == "4 bits"
        assert guessing.draft_bytes == draft.likely_bytes["4 bits"]
        assert guessing.plan.draft == guessing.draft_bytes + own(found).plan.draft
        assert guessing.draft_kv == draft.kv_shape.bytes_for(512)
        without = own(found)
        taken = guessing.draft_bytes + guessing.draft_kv + found.kv_shape.block_bytes + guessing.guess_bytes
        assert without.plan.resident - guessing.plan.resident == taken

    def test_a_draft_is_whole_where_everything_stays_in_memory(self) -> None:
        guessing = plan_guesses(subject(32 << 30), 1.0, draft_1b()).drafted
        assert guessing is not None
        assert (guessing.draft_form, guessing.plan.streamed) == ("whole", 0)

    def test_no_room(self) -> None:
        """For the draft, or for guessing at all, though there is for the model."""
        small = subject(800 * MIB)
        small.budget.plan(Demand(kv=small.kv_shape.bytes_for(512)))
        found = plan_guesses(small, 20.0, draft_1b())
        assert found.own is not None
        assert (found.drafted, found.pays) == (None, (False, False))
        least = next(c for c in range(300, 800) if _fits(subject(c * MIB)))
        found = plan_guesses(subject(least * MIB), 20.0, draft_1b())
        assert (found.own, found.drafted, found.pays) == (None, None, (False, False))


def _fits(found: GuessSubject) -> bool:
    try:
        return bool(found.budget.plan(Demand(kv=found.kv_shape.bytes_for(512))))
    except MemoryCeilingError:
        return False


class TestForecasts:
    def test_by_hand(self) -> None:
        """The disk's seconds or those of the rows; and of the coarse weights', once a step."""
        found = subject(4 << 30)
        guessing = own(found)
        plan, weights = guessing.plan, ARCHITECTURE.pass_weights
        one = plan.weights / 13.4e9
        many = (ARCHITECTURE.flops(64, 512) + 2 * 63 * 4096 * 128256) / 200e9

        def pass_seconds(rows: int) -> float:
            return max(plan.streamed / 524e6, one + (many - one) / 63 * (rows - 1))

        def step_seconds(nodes: int) -> float:
            return weights / 40e9 + (weights / 20e9 - weights / 40e9) / 7 * (nodes - 1)

        for chances, forecast in zip(ASSUMED, guessing.forecasts, strict=True):
            expected = forecast_guesses(chances, pass_seconds, step_seconds, guessing.most_guesses)
            assert forecast.guesses == expected.guesses > 8
            assert forecast.seconds_per_token == pytest.approx(expected.seconds_per_token)

    def test_4_bit_weights_have_a_rate_of_their_own(self) -> None:
        """In 2 GiB there is no coarse tier, and the first step asks about the root alone."""
        guessing = plan_guesses(subject(2 << 30), 1.0, draft_1b()).drafted
        assert guessing is not None
        assert guessing.drafters == ("draft", "draft")
        weights = Architecture(LLAMA_1B).pass_weights
        for forecast in guessing.forecasts:
            least = weights / 30e9 * forecast.steps
            assert least < forecast.draft_seconds < least + weights / 15e9 * (forecast.steps - 1)

    def test_more_acceptance_brings_more(self) -> None:
        seventy, eighty_five = own(subject(4 << 30)).forecasts
        assert 1 < seventy.tokens < eighty_five.tokens
        assert eighty_five.seconds_per_token < seventy.seconds_per_token

    def test_fewer_layers_guess_in_less_time(self) -> None:
        all_layers, fewer = (own(subject(mib * MIB)) for mib in (4096, 2900))
        assert 24 <= fewer.tier_layers < 32
        seconds = [
            guessing.forecasts[0].draft_seconds / guessing.forecasts[0].steps for guessing in (all_layers, fewer)
        ]
        assert seconds[1] < seconds[0]

    def test_nothing_pays_where_guessing_is_slow(self) -> None:
        slow = replace(subject(4 << 30), speed=DraftSpeed(1e8, 1e8, 1e8, 1e8))
        guessing = own(slow)
        assert guessing.tier_layers == 32
        assert guessing.drafters == ("", "")
        assert [(f.tokens, f.guesses, f.draft_seconds) for f in guessing.forecasts] == [(1.0, 0, 0.0)] * 2


class TestWhetherADraftPays:
    def test_it_does_where_nothing_else_guesses(self) -> None:
        for found in (subject(2 << 30), subject(3 << 30, packed=False)):
            plain = forecast_token(found.budget.plan(Demand(kv=found.kv_shape.bytes_for(512))), RATES)
            guesses = plan_guesses(found, plain.seconds, draft_1b())
            assert guesses.pays == (True, True)

    @pytest.mark.parametrize(("disk_bytes", "pays"), [(20e6, False), (1e9, True)])
    def test_where_the_coarse_tier_guesses_too_the_disk_decides(self, disk_bytes: float, pays: bool) -> None:
        """The draft is quicker, and leaves less room for weights."""
        guesses = plan_guesses(subject(4 << 30, disk_bytes=disk_bytes), 1.0, draft_1b())
        assert guesses.own is not None
        assert guesses.own.drafters == ("coarse", "coarse")
        assert guesses.pays == (pays, pays)

    def test_it_does_not_where_it_is_as_slow_as_what_it_guesses_for(self) -> None:
        """A model that is its own draft."""
        found = subject(16 << 30, config=LLAMA_1B)
        guesses = plan_guesses(found, 0.3, draft_1b(LLAMA_1B))
        assert guesses.drafted is not None
        assert guesses.pays == (False, False)

    def test_only_where_acceptance_is_high(self) -> None:
        """One step brings 1.87 tokens or 1.93, and takes what 0.9 of a plain pass does, and more."""
        found = subject(2 << 30)
        guesses = plan_guesses(found, 1.0, draft_1b())
        assert guesses.own is not None
        assert guesses.drafted is not None
        step = 1.9 * guesses.own.forecasts[0].seconds_per_token - guesses.drafted.forecasts[0].pass_seconds
        slow = Architecture(LLAMA_1B).pass_weights / step
        found = replace(found, speed=DraftSpeed(1.0, 1.0, slow, slow))
        assert plan_guesses(found, 1.0, draft_1b()).pays == (False, True)


def test_as_an_object() -> None:
    guesses = plan_guesses(subject(2 << 30), 20.0, draft_1b())
    said: Mapping[str, Any] = json.loads(json.dumps(guesses.as_object()))
    assert (said["draft"], said["draft_pays"]) == ("llama-3.2-1b", [True, True])
    assert said["own"]["tier_layers"] == 0
    drafted = said["drafted"]
    assert drafted["plan"]["draft"] == drafted["draft_bytes"] + said["own"]["plan"]["draft"]
    for forecast, chances in zip(drafted["forecasts"], ASSUMED, strict=True):
        assert (forecast["assumed"], forecast["drafter"]) == (list(chances), "draft")
        seconds = forecast["draft_seconds"] + forecast["pass_seconds"]
        assert forecast["seconds_per_token"] == pytest.approx(seconds / forecast["tokens"])
    assert "drafters" not in drafted
