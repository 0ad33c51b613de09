from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import CASES
from helpers.checkpoints import tiny_config
from penstock import LLM
from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.registry import parse_config
from penstock.forecast.seconds import Forecast, forecast_prompt, forecast_token
from penstock.memory.budget import Plan
from penstock.stages.rates import ComputeSpeed, Rates
from penstock.synth.shapes import shape_config
from penstock.weights.sizes import StoredSize

RATES = Rates(disk_bytes=524e6, row_bytes=20e9, flops=100e9, indexed_bytes=15e9)
LLAMA_8B = parse_config(shape_config("llama-3.1-8b"), "shape")


def plan(resident: int, streamed: int) -> Plan:
    return Plan(resident=resident, streamed=streamed, **dict.fromkeys(("ceiling", "process", "scratch", "ring"), 0),
                allowance=0, kv=0, activations=0)  # fmt: skip


def counted_flops(config: ModelConfig, rows: int, positions: int) -> int:
    """One multiplication and one addition for every weight and row, and for every key and value that a row sees."""
    shapes = Architecture(config).tensors
    matrices = {name: prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2}
    of_experts = sum(size for name, size in matrices.items() if ".experts." in name)
    share = config.experts.per_token / config.experts.count if config.experts is not None else 1
    layers = sum(matrices.values()) - of_experts + round(of_experts * share)
    seen = sum(range(positions - rows + 1, positions + 1))
    attention = 4 * seen * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 2 * rows * layers + attention + 2 * prod(shapes["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", CASES)
def test_operations_of_a_pass(name: str) -> None:
    changes = {key: value for key, value in tiny_config(**CASES[name].config).items() if value is not None}
    config = parse_config(changes, "test")
    for rows, positions in ((1, 1), (1, 9), (5, 5), (3, 8)):
        assert Architecture(config).flops(rows, positions) == counted_flops(config, rows, positions)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_a_pass_are_those_of_the_model_once_it_is_here(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    config = parse_config({key: v for key, v in tiny_config(**case.config).items() if v is not None}, "test")
    with LLM.open(case.write(tmp_path)) as llm:
        assert Architecture(config).pass_weights * (4 if case.dtype == "F32" else 2) == llm.weights.pass_bytes


def test_a_row_of_the_8b_takes_15_gigaflops() -> None:
    assert Architecture(LLAMA_8B).flops(1, 1) == pytest.approx(15.0e9, rel=2e-3)


@pytest.mark.parametrize(
    ("size", "row_bytes", "flops"),
    [
        (StoredSize(nbytes=1000, raw=1000), 20e9, 100e9),
        (StoredSize(nbytes=670, raw=1000, decoded=1000), 0.67 * 10e9, 80e9),
        (
            StoredSize(nbytes=800, raw=1000, decoded=500),
            0.8 / (0.5 / 10e9 + 0.5 / 20e9),
            1 / (0.5 / 80e9 + 0.5 / 100e9),
        ),
    ],
)
def test_rates_with_packed_weights(size: StoredSize, row_bytes: float, flops: float) -> None:
    """A second's worth of stored bytes is what they stand for, decoded or not."""
    rates = Rates.of(size, 524e6, ComputeSpeed(20e9, 100e9, 10e9, 80e9, 15e9))
    assert rates == Rates(524e6, pytest.approx(row_bytes), pytest.approx(flops), 15e9)


def test_indexed_rows_have_a_rate_of_their_own() -> None:
    """And the first pass reads the weights as they are stored."""
    shared = replace(plan(3_000_000_000, 0), indexed=2_600_000_000)
    assert forecast_token(shared, RATES).seconds == 3e9 / 15e9
    assert forecast_prompt(Architecture(LLAMA_8B), shared, 1, 1, RATES).bytes_read == 2_600_000_000


def test_the_size_in_bf16() -> None:
    assert 2 * Architecture(LLAMA_8B).pass_weights == 15_009_316_864


def test_the_disk_decides() -> None:
    forecast = forecast_token(plan(3 * 10**9, 12 * 10**9), RATES)
    assert forecast == Forecast(1, 12 * 10**9, 12e9 / 524e6, 15 / 20, 12e9 / 524e6)
    assert forecast.disk_seconds >= forecast.compute_seconds


def test_compute_decides() -> None:
    forecast = forecast_token(plan(10**9, 10**3), RATES)
    assert forecast.disk_seconds < forecast.compute_seconds
    assert forecast.seconds == forecast.compute_seconds == (10**9 + 10**3) / 20e9


def test_a_short_prompt_waits_for_all_weights_and_a_long_one_for_the_arithmetic() -> None:
    shares = plan(3 * 10**9, 12 * 10**9)
    short, long = (forecast_prompt(Architecture(LLAMA_8B), shares, tokens, 4096, RATES) for tokens in (16, 4096))
    assert (short.bytes_read, short.disk_seconds, short.seconds) == (15 * 10**9, 15e9 / 524e6, 15e9 / 524e6)
    assert (long.passes, long.seconds) == (1, long.compute_seconds)
    assert long.seconds == Architecture(LLAMA_8B).flops(4096, 4096) / 100e9


@given(tokens=st.integers(1, 300), chunk=st.integers(1, 300), resident=st.integers(0, 10**9))
def test_passes_of_a_prompt(tokens: int, chunk: int, resident: int) -> None:
    forecast = forecast_prompt(Architecture(LLAMA_8B), plan(resident, 10**9 - resident), tokens, chunk, RATES)
    assert forecast.passes == -(-tokens // chunk)
    assert forecast.bytes_read == 10**9 + (forecast.passes - 1) * (10**9 - resident)
    slower = max(forecast.disk_seconds, forecast.compute_seconds)
    both = forecast.disk_seconds + forecast.compute_seconds
    assert slower <= forecast.seconds * (1 + 1e-9) <= both * (1 + 2e-9)
