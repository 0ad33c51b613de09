"""Forecasts of mixtures: a row needs some experts, many rows nearly all, and what is in memory is not read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.errors import UsageError
from penstock.forecast.outlook import PlanSettings
from penstock.forecast.seconds import forecast_prompt, forecast_token
from penstock.memory.budget import Budget, Demand
from penstock.models.pass_stats import PartStats, PassStats
from penstock.speculate.costs import Costs
from penstock.stages.rates import Rates
from penstock.synth.shapes import shape_config
from penstock.weights.sizes import packed_size, pass_matrices, raw_size

CONFIG = parse_config(shape_config("qwen3-30b-a3b"), "shape")
QWEN = Architecture(CONFIG)
RATES = Rates(disk_bytes=524e6, row_bytes=20e9, flops=100e9, indexed_bytes=15e9)
GIB = 1 << 30


def budget(ceiling: int, hit_rate: float = 0.0) -> Budget:
    size = packed_size(pass_matrices(CONFIG))
    assert size is not None
    return replace(Budget(QWEN, 0, ceiling, 150 << 20, 8 << 20).storing(size), hit_rate=hit_rate)


def test_sizes() -> None:
    """One expert is 9.4 MB, all are 58 GB, and the rest that a pass needs 2.5 GB (published sizes)."""
    size = raw_size(pass_matrices(CONFIG))
    assert size.experts == 48 * 128 * 3 * 2048 * 768 * 2
    assert size.nbytes - size.experts == pytest.approx(2.44e9, rel=0.01)
    assert QWEN.weights_per_row == pytest.approx(3.03e9, rel=0.01)


@pytest.mark.parametrize(("rows", "experts"), [(1, 8), (2, 15.5), (8, 52), (64, 126), (4096, 128)])
def test_rows_share_experts(rows: int, experts: float) -> None:
    assert 128 * QWEN.expert_share(rows) == pytest.approx(experts, rel=0.02)


def test_a_token_reads_its_experts() -> None:
    plan = budget(3 * GIB).plan(Demand())
    assert plan.resident + plan.streamed + plan.idle == plan.weights
    assert plan.hit_rate < 0.04
    token = forecast_token(plan, RATES, QWEN.expert_share(1))
    assert token.bytes_read == plan.streamed == pytest.approx(2.4e9, rel=0.03)
    assert token.seconds == pytest.approx(4.6, rel=0.03)


def test_more_memory_keeps_experts() -> None:
    plans = [budget(gib * GIB).plan(Demand()) for gib in (2, 3, 8, 16, 64)]
    reads = [plan.streamed for plan in plans]
    assert reads == sorted(reads, reverse=True)
    assert reads[-1] == 0
    assert [plan.hit_rate for plan in plans] == sorted(plan.hit_rate for plan in plans)


def test_a_hit_rate_that_was_measured() -> None:
    counted, measured = budget(8 * GIB).plan(Demand()), budget(8 * GIB, 0.6).plan(Demand())
    assert measured.streamed == pytest.approx(counted.streamed * 0.4 / (1 - counted.hit_rate), rel=1e-3)
    assert budget(8 * GIB, 0.01).plan(Demand()).hit_rate == counted.hit_rate


def test_a_prompt_reads_nearly_everything_once() -> None:
    one = budget(3 * GIB)
    plan = one.plan(Demand(rows=512))
    prompt = forecast_prompt(QWEN, plan, 512, 512, RATES)
    assert prompt.passes == 1
    assert prompt.bytes_read == pytest.approx(plan.weights, rel=1e-3)


def test_a_rate_that_is_none() -> None:
    with pytest.raises(UsageError, match="no share"):
        PlanSettings(hit_rate=1.5)


def disk_bound(rows: int, seconds: float) -> PassStats:
    part = PartStats("layer 0", 10**9, seconds, 0.95 * seconds, 0.05 * seconds)
    return PassStats(rows, (part,), seconds, seconds)


def test_guesses_cost_the_experts_that_they_add() -> None:
    costs = Costs.of(QWEN)
    for _ in range(5):
        costs.learn_pass(disk_bound(1, 4.6))
    assert costs.pass_seconds(1) == pytest.approx(4.6, rel=0.05)
    assert costs.pass_seconds(9) > 4 * costs.pass_seconds(1), "before any pass of several rows was seen"
    for _ in range(20):
        costs.learn_pass(disk_bound(9, 12.0))
        costs.learn_pass(disk_bound(1, 4.6))
    assert costs.pass_seconds(9) == pytest.approx(12.0, rel=0.1)
    assert costs.pass_seconds(1) == pytest.approx(4.6, rel=0.1)


def test_rows_of_a_dense_model_cost_no_reading() -> None:
    costs = Costs.of(Architecture(parse_config(shape_config("llama-3.2-1b"), "shape")))
    for _ in range(5):
        costs.learn_pass(disk_bound(1, 4.6))
    assert costs.pass_seconds(9) < 1.1 * costs.pass_seconds(1)
