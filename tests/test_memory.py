from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from assembled import open_engine
from cases import CASES

from penstock.errors import MemoryCeilingError
from penstock.kv_cache import BLOCK_SLOTS, KvShape
from penstock.memory import Memory
from penstock.plan import LEAST_CHUNK_ROWS, MIB, Budget, Demand, parse_bytes
from penstock.pressure import Relief, Sample
from penstock.rows import Rows, SequenceRows
from penstock.weights import Weights

CALM = Sample(4000 * MIB, reserve=200 * MIB, group_free=None, group_reserve=0, swapped=0, stalled_seconds=0.0)
BIG = 1 << 34


class Model:
    """A tiny model whose KV is as large as that of a large one, under a ceiling that a test sets."""

    SHAPE = KvShape(layers=32, kv_heads=8, head_dim=128, dtype="bf16")

    def __init__(self, path: Path) -> None:
        self.engine = open_engine(path)
        self.weights: Weights = self.engine.__enter__().stage.model.weights
        self.config = self.weights_config()
        self.state, self.now = CALM, 0.0

    def weights_config(self):  # type: ignore[no-untyped-def]
        from penstock.checkpoint import open_checkpoint

        return open_checkpoint(next(iter(self.weights.tensors.values())).path.parent).config

    def memory(self, spare: int, **options: object) -> Memory:
        """Under a ceiling that leaves `spare` bytes beside a pass of the fewest rows and one block of KV."""
        demand = Demand(LEAST_CHUNK_ROWS, 1, self.SHAPE.bytes_for(1))
        whole = Budget(self.config, self.weights.pass_bytes, BIG, 0, 0).plan(demand)
        process = BIG - sum((whole.ring, whole.allowance, whole.kv, whole.activations)) - spare
        budget = Budget(self.config, self.weights.pass_bytes, BIG, process, 0)
        return Memory(budget, self.weights, self.SHAPE, **options)  # type: ignore[arg-type]

    def relief(self) -> Relief:
        return Relief(lambda: self.state, lambda: self.now)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    model = Model(CASES["gqa-4"].write(tmp_path))
    yield model
    model.engine.__exit__(None, None, None)


def rows_of(memory: Memory, count: int) -> Rows:
    return Rows([SequenceRows.plain(memory.new_cache(), [1] * count)])


def test_keys_and_values_evict_weights_and_never_the_other_way_round(model: Model) -> None:
    block, weights = model.SHAPE.block_bytes, model.weights.pass_bytes
    memory = model.memory(spare=2 * block + weights // 2)
    rows, resident = rows_of(memory, LEAST_CHUNK_ROWS), []
    held = [memory.new_cache() for _ in range(3)]
    for cache in held[:2]:
        memory.before_pass(rows)
        resident.append(memory.plan.resident)
        cache.reserve(BLOCK_SLOTS)
    del cache
    memory.before_pass(rows)
    assert [*resident, memory.plan.resident] == [weights, weights, weights // 2]
    assert memory.plan.kv == 3 * block
    held[2].reserve(BLOCK_SLOTS)
    with pytest.raises(MemoryCeilingError):
        memory.before_pass(rows)
    held.clear()
    memory.before_pass(rows)
    assert memory.plan.streamed == 0, "caches that are gone still count"


def test_a_pass_without_room_names_the_least_ceiling(model: Model) -> None:
    memory = model.memory(spare=0)
    with pytest.raises(MemoryCeilingError, match=f"ceiling of {BIG >> 20} MiB is too small") as caught:
        memory.before_pass(rows_of(memory, 5 * BLOCK_SLOTS))
    least = parse_bytes(caught.value.remedy.split("works is ")[1].split(":")[0])
    assert BIG + 16 * MIB <= least < BIG + 18 * MIB


def test_chunks_are_as_long_as_there_is_room_for(model: Model) -> None:
    memory = model.memory(spare=10 * MIB)
    cache = memory.new_cache()
    most = memory.most_rows({cache: BLOCK_SLOTS}, logit_rows=1)
    memory.budget.plan(Demand(most, 1, model.SHAPE.block_bytes))
    assert most > 1000
    assert memory.most_rows({cache: 3 * BLOCK_SLOTS}, logit_rows=1) < most / 2
    assert memory.most_rows({cache: 9 * BLOCK_SLOTS}, logit_rows=1) == LEAST_CHUNK_ROWS


class TestMostTokens:
    def test_what_is_wanted_where_it_fits(self, model: Model) -> None:
        memory = model.memory(spare=9 * MIB)
        assert memory.most_tokens([10], 20, 512) == 20
        assert memory.most_tokens([10], 3 * BLOCK_SLOTS - 9, 512) == 3 * BLOCK_SLOTS - 9
        with pytest.raises(MemoryCeilingError, match=r"of 10 prompt tokens and 88 new ones for each of 1 prompts"):
            memory.most_tokens([10], 3 * BLOCK_SLOTS - 8, 512)

    def test_the_context_bounds_what_is_wanted(self, model: Model) -> None:
        memory = model.memory(spare=9 * MIB)
        assert memory.most_tokens([10], 10**9, 3 * BLOCK_SLOTS + 1) == 10**9
        with pytest.raises(MemoryCeilingError):
            memory.most_tokens([10], 10**9, 3 * BLOCK_SLOTS + 2)

    @pytest.mark.parametrize("prompts", [[1], [10, 40], [33, 33, 33]])
    def test_what_there_is_room_for(self, model: Model, prompts: list[int]) -> None:
        memory = model.memory(spare=41 * MIB)
        tokens = memory.most_tokens(prompts, None, 512)
        assert memory.most_tokens(prompts, tokens, 10**6) == tokens
        caches = [memory.new_cache(n + tokens) for n in prompts]
        assert memory.most_tokens(prompts[:1], 1, 10**6) == 1, "none of the room is left for others"
        del caches
        with pytest.raises(MemoryCeilingError):
            memory.most_tokens(prompts, 2 * tokens + 4 * BLOCK_SLOTS, 10**6)

    def test_sequences_that_are_there_may_grow_to_what_they_were_promised(self, model: Model) -> None:
        memory = model.memory(spare=9 * MIB)
        running = memory.new_cache(2 * BLOCK_SLOTS)
        with pytest.raises(MemoryCeilingError):
            memory.most_tokens([10], BLOCK_SLOTS, 512)
        del running
        assert memory.most_tokens([10], BLOCK_SLOTS, 512) == BLOCK_SLOTS

    def test_the_error_names_the_least_that_works(self, model: Model) -> None:
        memory = model.memory(spare=0)
        with pytest.raises(MemoryCeilingError, match="lower --max-tokens") as caught:
            memory.most_tokens([100], 100, 512)
        least = parse_bytes(caught.value.remedy.split("works is ")[1].split(":")[0])
        assert BIG + 24 * MIB <= least <= BIG + 26 * MIB

    def test_caches_that_are_there_take_their_part(self, model: Model) -> None:
        memory = model.memory(spare=9 * MIB)
        cache = memory.new_cache()
        cache.reserve(2 * BLOCK_SLOTS)
        with pytest.raises(MemoryCeilingError):
            memory.most_tokens([10], 3 * BLOCK_SLOTS - 9, 512)


def test_pressure_from_outside_takes_weights_and_gives_them_back(model: Model) -> None:
    memory = model.memory(spare=10 * MIB + model.weights.pass_bytes, relief=model.relief())
    limits: list[int] = []
    model.weights.limit_resident = limits.append  # type: ignore[method-assign]
    memory.before_pass(rows_of(memory, 1))
    memory.relieve()
    assert limits == [model.weights.pass_bytes]
    model.now, model.state = 1.0, replace(CALM, available=0)
    memory.relieve()
    memory.before_pass(rows_of(memory, 1))
    assert limits == [model.weights.pass_bytes, 0, 0]


def test_a_bound_on_weights_in_any_case(model: Model) -> None:
    memory = model.memory(spare=10 * MIB + model.weights.pass_bytes, max_resident=7000)
    memory.before_pass(rows_of(memory, 1))
    for name in model.weights.tensors:
        if model.weights.tensors[name].shape[1:] and "embed" not in name:
            for _ in model.weights.pieces(name):
                pass
    assert 0 < model.weights.resident_bytes <= 7000
