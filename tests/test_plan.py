from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from assembled import new_cache, open_engine
from cases import CASES, DEMO, random_tokens
from checkpoints import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import parse_config
from penstock.errors import MemoryCeilingError, UsageError
from penstock.kv_cache import KvShape
from penstock.plan import ALLOWANCE_BYTES, MIB, Plan, activation_bytes, format_bytes, parse_bytes
from penstock.rows import Rows, SequenceRows


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 * MIB),
        ("2GiB", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("3 GB", 3 * 10**9),
        (" 250mb ", 250 * 10**6),
        ("64KiB", 65536),
        ("10kb", 10_000),
        ("1000", 1000),
        ("1000B", 1000),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "2 TiB", "-1GiB", "1e9", "2GiB more", "1,5GiB", "0x10", -5, True, None])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.problem == f"{text!r} is not a size."
    assert caught.value.remedy == "Write it like 512MiB or 2GiB."


@given(st.integers(0, 1 << 45))
def test_a_size_for_people_is_enough_when_read_again(count: int) -> None:
    assert 0 <= parse_bytes(format_bytes(count)) - count < MIB


SIZES = st.integers(0, 1 << 34)


@given(ceiling=SIZES, process=SIZES, ring=SIZES, kv=SIZES, activations=SIZES)
def test_shares_fill_the_ceiling_and_never_pass_it(
    ceiling: int, process: int, ring: int, kv: int, activations: int
) -> None:
    plan, least = Plan(ceiling, process, ring), process + ring + kv + activations + ALLOWANCE_BYTES
    if least <= ceiling:
        assert plan.resident(kv, activations) == ceiling - least
        return
    with pytest.raises(MemoryCeilingError) as caught:
        plan.resident(kv, activations)
    assert f"ceiling of {ceiling // MIB} MiB is too small" in caught.value.problem
    named = caught.value.remedy.removeprefix("The least that works is ").split(":")[0]
    assert 0 <= Plan(parse_bytes(named), process, ring).resident(kv, activations) < MIB


def test_a_ceiling_is_never_said_to_be_the_least_that_works() -> None:
    """Of a ceiling just below what works, both are the same in whole MiB."""
    plan = Plan(ceiling=100 * MIB + 1, process=100 * MIB + 2 - ALLOWANCE_BYTES, ring=0)
    with pytest.raises(MemoryCeilingError) as caught:
        plan.resident(0, 0)
    assert "of 101 MiB" not in caught.value.problem
    assert "works is 101 MiB" in caught.value.remedy


def test_activations_of_the_8b() -> None:
    """A row of the widest part, and the logits of one: the arithmetic, written out."""
    config = parse_config(
        tiny_config(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
            head_dim=128,
        ),
        "config.json",
    )  # fmt: skip
    row = 4 * (3 * 4096 + 14336 + 1024 + 128)
    assert activation_bytes(config, 1, 1) == row + 4 * 6 * 128256
    assert activation_bytes(config, 4096, 1) == 4096 * row + 4 * 6 * 128256
    assert activation_bytes(config, 10, 0) == 10 * row


@pytest.mark.parametrize("wanted", [1, 300])
@pytest.mark.parametrize("name", [*CASES, "demo"])
def test_activations_cover_what_a_pass_allocates(tmp_path: Path, name: str, wanted: int) -> None:
    """All that Python and NumPy allocate from the beginning of a pass to its end, KV blocks aside."""
    path = CASES[name].write(tmp_path) if name in CASES else DEMO
    n, slack = 300, 64 << 10  # pieces, generators and views, which do not grow with the rows
    with open_engine(path, kv="f32", piece_bytes=1 << 20) as engine:
        config, cache = engine.stage.model.config, new_cache(engine)
        tokens = random_tokens(n, config.vocab_size)
        rows = Rows([SequenceRows.plain(cache, tokens, range(n - wanted, n))])
        rows.reserve()
        engine.stage.run(rows)
        tracemalloc.start()
        engine.stage.run(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert cache.nbytes == KvShape.of(config, config.num_hidden_layers, "f32").bytes_for(n)
    assert peak <= activation_bytes(config, n, wanted) + slack
