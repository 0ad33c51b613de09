from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.assembled import new_cache, open_engine, stage_of
from helpers.cases import CASES, DEMO, Case, random_tokens
from helpers.checkpoints import tiny_config
from helpers.thorough import quick
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.errors import MemoryCeilingError, UsageError
from penstock.memory.budget import ENOUGH_GUESSES, LEAST_RANK, Budget, Demand, choose_ring, ring_fill
from penstock.models.kv_planes import KvShape
from penstock.models.rows import Rows, SequenceRows
from penstock.system.sizes import MIB, format_bytes, parse_bytes


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


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "2GiB more", "1,5GiB", "0x10", -5, True, None])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.problem == f"{text!r} is not a size."
    assert caught.value.remedy == "Write it like 512MiB, 3G (the same as 3GiB), 2.5 GiB or 3GB (10**9 bytes each)."


@given(st.integers(0, 1 << 45))
def test_a_size_for_people_is_enough_when_read_again(count: int) -> None:
    assert 0 <= parse_bytes(format_bytes(count)) - count < MIB


SIZES = st.integers(0, 1 << 34)
CONFIG = parse_config(tiny_config(), "config.json")


def budget_of(ceiling: int, process: int = 0, scratch: int = 0, weights: int = 1 << 40) -> Budget:
    return Budget(Architecture(CONFIG), weights, ceiling, process, scratch)


def named_least(error: MemoryCeilingError) -> int:
    return parse_bytes(error.remedy.removeprefix("The least that works is ").split(":")[0])


@given(ceiling=SIZES, process=SIZES, scratch=SIZES, kv=SIZES, rows=st.integers(1, 5000), weights=SIZES)
def test_shares_fill_the_ceiling_and_never_pass_it(
    ceiling: int, process: int, scratch: int, kv: int, rows: int, weights: int
) -> None:
    budget, demand = budget_of(ceiling, process, scratch, weights), Demand(rows, 1, kv)
    try:
        plan = budget.plan(demand)
    except MemoryCeilingError as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert f"ceiling of {ceiling // MIB} MiB is too small" in error.problem
        least = named_least(error)
        assert least > ceiling // MIB * MIB
        assert budget_of(least, process, scratch, weights).plan(demand).resident >= 0
        with pytest.raises(MemoryCeilingError):
            budget_of(least - 2 * MIB, process, scratch, weights).plan(demand)
        return
    parts = (plan.process, plan.scratch, plan.ring, plan.allowance, plan.kv, plan.activations, plan.resident)
    assert sum(parts) <= ceiling
    assert sum(parts) == ceiling or plan.streamed == 0
    assert plan.resident + plan.streamed == weights


@given(ceiling=st.integers(64 * MIB, 1 << 36), more=st.integers(0, 1 << 30))
def test_a_higher_ceiling_never_leaves_less(ceiling: int, more: int) -> None:
    """But for the rounding of the ring's buffers."""
    demand = Demand()
    assert budget_of(ceiling + more).plan(demand).resident >= budget_of(ceiling).plan(demand).resident - MIB // 8


@given(ceiling=st.integers(1 << 28, 1 << 34), kv=st.integers(0, 1 << 28), logit_rows=st.integers(0, 100))
def test_the_longest_chunk_fits_and_one_row_more_does_not(ceiling: int, kv: int, logit_rows: int) -> None:
    budget = budget_of(ceiling)
    rows = budget.most_rows(kv, logit_rows)
    if rows > 0:
        budget.plan(Demand(rows, logit_rows, kv))
    with pytest.raises(MemoryCeilingError):
        budget.plan(Demand(max(1, rows + 1), logit_rows, kv))


def test_the_ring_grows_with_the_ceiling() -> None:
    sizes = {ceiling: choose_ring(ceiling << 20).piece_bytes / MIB for ceiling in (16, 36, 250, 384, 768, 9999)}
    expected = {16: 0.5, 36: 0.5, 250: 3.47, 384: 5.33, 768: 5.33, 9999: 5.33}
    assert sizes == pytest.approx(expected, abs=0.01)
    assert {(ring.depth, ring.reads) for ring in map(choose_ring, (16 << 20, 9999 << 20))} == {(12, 8)}


@given(
    ceiling=st.integers(16 * MIB, 1 << 36), chunk=st.integers(0, 8 * MIB), window=st.integers(0, 1 << 31)
)  # fmt: skip
def test_a_ring_holds_what_comes_between_turns(ceiling: int, chunk: int, window: int) -> None:
    """In buffers of the same size as without, and no more of them than it takes."""
    ring, usual = choose_ring(ceiling, chunk, window), choose_ring(ceiling, chunk)
    assert (ring.piece_bytes, ring.reads) == (usual.piece_bytes, usual.reads)
    assert ring_fill(chunk) * ring.depth * ring.piece_bytes >= window * (1 - 1e-6)
    assert ring.depth == usual.depth or ring_fill(chunk) * (ring.depth - 1) * ring.piece_bytes < window
    budget = replace(budget_of(ceiling), chunk=chunk, window=window)
    assert budget.ring == ring


def test_a_plan_prints_as_a_table() -> None:
    text = str(budget_of(1 << 30, process=100 * MIB).plan(Demand(kv=8 * MIB)))
    assert "process     100 MiB" in text
    assert "kv       8 MiB" in text
    assert "of    1024 MiB" in text
    assert "streamed" in text


def test_activations_of_the_8b() -> None:
    """A row of the widest part, and the logits of one: the arithmetic, written out."""
    config = parse_config(
        tiny_config(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
            head_dim=128,
        ),
        "config.json",
    )  # fmt: skip
    row = 4 * (2 * 4096 + 14336 + 1024 + 128)
    assert Architecture(config).activation_bytes(1, 1, 8 * MIB) == row + 4 * 6 * 128256
    assert Architecture(config).activation_bytes(4096, 1, 8 * MIB) == 4096 * row + 4 * 6 * 128256
    assert Architecture(config).activation_bytes(10, 0, 8 * MIB) == 10 * row + 4 * 5 * 128256
    assert (
        Architecture(config).activation_bytes(1, 0, MIB)
        == Architecture(config).activation_bytes(1, 0, 8 * MIB) - 4 * 896
    )


WIDE = Case({"hidden_size": 48, "intermediate_size": 900, "num_attention_heads": 1, "num_key_value_heads": 1})


@pytest.mark.parametrize("piece_bytes", quick([1 << 20], [2000, 1 << 20, choose_ring(2 << 30).piece_bytes]))
@pytest.mark.parametrize("wanted", quick([300], [1, 300]))
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("name", [*CASES, "wide", "demo"])
def test_activations_cover_what_a_pass_allocates(
    tmp_path: Path, name: str, ranked: bool, wanted: int, piece_bytes: int
) -> None:
    """All that Python and NumPy allocate from the beginning of a pass to its end, KV blocks aside."""
    path = DEMO if name == "demo" else (CASES | {"wide": WIDE})[name].write(tmp_path)
    n, slack = 300, 64 << 10  # pieces, generators and views, which do not grow with the rows
    with open_engine(path, kv="f32", piece_bytes=piece_bytes) as engine:
        config, cache = stage_of(engine).decoder.config, new_cache(engine)
        tokens = random_tokens(n, config.vocab_size)
        rows = Rows([replace(SequenceRows.plain(cache, tokens, range(n - wanted, n)), likeliest=ranked)])
        engine.chain.run_pass(rows)
        tracemalloc.start()
        engine.chain.run_pass(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        planes = stage_of(engine).decoder.planes
        assert planes.nbytes == cache.n_blocks * planes.shape.block_bytes == KvShape.of(config, "f32").bytes_for(n)
    logit_rows, ranked_rows = (0, wanted) if ranked else (wanted, 0)
    counted = Architecture(config).activation_bytes(n, logit_rows, piece_bytes, ranked_rows=ranked_rows)
    assert peak <= counted + slack


class TestWhatGuessingTakes:
    """The weights that guesses are made with, corrections of them, and the guesses themselves share what there is."""

    BUDGET = budget_of(1 << 30)
    SLOT = 1 << 12
    KV = 5 << 20

    def room(self, guesses: int) -> int:
        """Beside keys and values and so many guesses with a slot each, whose logits are not kept."""
        return self.BUDGET.plan(Demand(1 + guesses, 1, self.KV + guesses * self.SLOT, guesses)).resident

    def most_guesses(self, wanted: int, logits: bool = False) -> int:
        return self.BUDGET.most_guesses(self.KV, 1, 1, self.SLOT, wanted, logits)

    def test_guesses_past_enough_leave_the_weights_their_room(self) -> None:
        for guesses in (ENOUGH_GUESSES, 100, 300):
            assert self.most_guesses(self.room(guesses)) == guesses
            assert self.most_guesses(self.room(guesses) - 1) == guesses
        assert self.most_guesses(self.room(ENOUGH_GUESSES - 20)) == ENOUGH_GUESSES

    def test_enough_of_them_where_not_all_weights_fit(self) -> None:
        assert self.most_guesses(int(self.room(0) * 1.1)) == ENOUGH_GUESSES

    def test_all_that_there_may_be_where_too_few_weights_fit_to_be_of_use(self) -> None:
        assert self.most_guesses(2 * self.room(0)) == self.most_guesses(0) > 4 * ENOUGH_GUESSES

    def test_their_logits_take_room(self) -> None:
        config = parse_config(tiny_config(vocab_size=128_256, hidden_size=4096), "config.json")
        budget = replace(self.BUDGET, architecture=Architecture(config))
        some, more = (budget.most_guesses(self.KV, 1, 1, self.SLOT, 0, logits) for logits in (True, False))
        assert some < more / 2

    @pytest.mark.parametrize("components", [LEAST_RANK, 20, 31])
    def test_corrections_get_what_the_weights_leave(self, components: int) -> None:
        room, size = self.room(ENOUGH_GUESSES), 1 << 20
        kv = self.KV + ENOUGH_GUESSES * self.SLOT
        assert self.BUDGET.correction_rank(room - components * size, size, 32, kv) == components
        assert self.BUDGET.correction_rank(room - 99 * size, size, 32, kv) == 32

    def test_the_first_components_displace_weights(self) -> None:
        room = self.room(ENOUGH_GUESSES)
        assert self.BUDGET.correction_rank(room, 1 << 20, 32, self.KV) == LEAST_RANK
        assert self.BUDGET.correction_rank(room, 1 << 20, 3, self.KV) == 3

    def test_none_where_too_few_weights_fit_to_be_of_use(self) -> None:
        assert self.BUDGET.correction_rank(2 * self.room(0), 1 << 20, 32, self.KV) == 0
        assert self.BUDGET.correction_rank(1 << 20, 0, 0, self.KV) == 0
