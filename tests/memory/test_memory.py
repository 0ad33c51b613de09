from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.assembled import open_engine, stage_of
from helpers.cases import CASES, random_tokens
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.errors import MemoryCeilingError
from penstock.memory.budget import GUESS_SHARE, LEAST_CHUNK_ROWS, Budget, Demand
from penstock.memory.memory import Memory
from penstock.memory.pressure import Relief, Sample
from penstock.memory.room import StageBudget, StageRoom
from penstock.models.kv_cache import BLOCK_SLOTS, Blocks, KvCache
from penstock.models.kv_planes import KvShape
from penstock.system.sizes import MIB, parse_bytes
from penstock.weights.weights import Weights

CALM = Sample(4000 * MIB, reserve=200 * MIB, group_free=None, group_reserve=0, swapped=0, stalled_seconds=0.0)
BIG = 1 << 34


class Model:
    """A tiny model whose KV is as large as that of a large one, under a ceiling that a test sets."""

    SHAPE = KvShape(layers=32, kv_heads=8, head_dim=128, dtype="bf16")

    def __init__(self, path: Path) -> None:
        self.engine = open_engine(path)
        stage = stage_of(self.engine.__enter__())
        self.weights: Weights = stage.weights
        self.config = stage.decoder.config
        self.state, self.now = CALM, 0.0

    def memory(
        self,
        spare: int,
        relief: Relief | None = None,
        max_resident: int | None = None,
        draft_kv: KvShape | None = None,
    ) -> Memory:
        """Under a ceiling that leaves `spare` bytes beside a pass of the fewest rows and one block of KV."""
        demand = Demand(LEAST_CHUNK_ROWS, 1, self.SHAPE.bytes_for(1))
        whole = Budget(Architecture(self.config), self.weights.pass_bytes, BIG, 0, 0).plan(demand)
        process = BIG - sum((whole.ring, whole.allowance, whole.kv, whole.activations)) - spare
        budget = Budget(Architecture(self.config), self.weights.pass_bytes, BIG, process, 0)
        share = StageBudget(budget, self.SHAPE, draft_kv, self.weights.draft_bytes)
        return Memory([StageRoom(share, self.weights, relief, max_resident)], Blocks())

    def relief(self) -> Relief:
        return Relief(lambda: self.state, lambda: self.now)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    model = Model(CASES["gqa-4"].write(tmp_path))
    yield model
    model.engine.__exit__(None, None, None)


def room_of(memory: Memory) -> StageRoom:
    [room] = memory.rooms
    assert isinstance(room, StageRoom)
    return room


def before_pass(memory: Memory, slots: Mapping[KvCache, int], rows: int, logit_rows: int = 1, guesses: int = 0) -> None:
    """Make room for a pass that ends with so many slots in these caches."""
    room_of(memory).make(memory.need(slots, rows, logit_rows, guesses))


def before_rows(memory: Memory, cache: KvCache, rows: int) -> None:
    """Make room for a pass of so many rows, which follow what a cache has; the logits of the last one are wanted."""
    before_pass(memory, {cache: cache.length + rows}, rows)


def test_keys_and_values_evict_weights_and_never_the_other_way_round(model: Model) -> None:
    block, weights = model.SHAPE.block_bytes, model.weights.pass_bytes
    memory = model.memory(spare=2 * block + weights // 2)
    new, resident = memory.new_cache(), []
    held = [memory.new_cache() for _ in range(3)]
    for cache in held[:2]:
        before_rows(memory, new, LEAST_CHUNK_ROWS)
        resident.append(memory.plan.resident)
        cache.reserve(BLOCK_SLOTS)
    del cache
    before_rows(memory, new, LEAST_CHUNK_ROWS)
    assert [*resident, memory.plan.resident] == [weights, weights, weights // 2]
    assert memory.plan.kv == 3 * block
    held[2].reserve(BLOCK_SLOTS)
    with pytest.raises(MemoryCeilingError):
        before_rows(memory, new, LEAST_CHUNK_ROWS)
    held.clear()
    before_rows(memory, new, LEAST_CHUNK_ROWS)
    assert memory.plan.streamed == 0, "caches that are gone still count"


def test_a_pass_without_room_names_the_least_ceiling(model: Model) -> None:
    memory = model.memory(spare=0)
    with pytest.raises(MemoryCeilingError, match=f"ceiling of {BIG >> 20} MiB is too small") as caught:
        before_rows(memory, memory.new_cache(), 5 * BLOCK_SLOTS)
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


class TestSharing:
    """Blocks that several caches have count once, and so does what is promised."""

    def test_shared_blocks_count_once(self, model: Model) -> None:
        memory = model.memory(spare=900 * MIB)
        donor, heir = memory.new_cache(), memory.new_cache()
        donor.reserve(4 * BLOCK_SLOTS)
        donor.truncate(4 * BLOCK_SLOTS)
        heir.adopt(donor, 3)
        before_rows(memory, heir, 5)
        assert memory.plan.kv == 5 * model.SHAPE.block_bytes
        donor.truncate(0)
        before_rows(memory, heir, 5)
        assert memory.plan.kv == 4 * model.SHAPE.block_bytes

    def test_room_for_one_more(self, model: Model) -> None:
        """Nine MiB beside a block: three blocks of 4 MiB in all."""
        memory = model.memory(spare=9 * MIB)
        assert memory.admits(3 * BLOCK_SLOTS)
        assert not memory.admits(3 * BLOCK_SLOTS + 1)
        assert memory.admits(3 * BLOCK_SLOTS + 1, adopted_blocks=1)
        running = memory.new_cache(2 * BLOCK_SLOTS)
        assert memory.admits(BLOCK_SLOTS)
        assert not memory.admits(BLOCK_SLOTS + 1)
        running.reserve(BLOCK_SLOTS)  # of what was promised to it
        assert memory.admits(BLOCK_SLOTS)
        memory.caches.promise(running, 0)
        assert memory.admits(2 * BLOCK_SLOTS)
        assert not memory.admits(3 * BLOCK_SLOTS)

    def test_what_was_kept_gives_way(self, model: Model) -> None:
        memory = model.memory(spare=9 * MIB)
        running = memory.new_cache()
        running.reserve(2 * BLOCK_SLOTS)
        running.truncate(2 * BLOCK_SLOTS)
        memory.caches.kept.keep([1] * 2 * BLOCK_SLOTS, running)
        running.truncate(0)
        assert memory.admits(3 * BLOCK_SLOTS)
        before_rows(memory, running, 1)
        assert memory.plan.kv == 3 * model.SHAPE.block_bytes
        running.reserve(2 * BLOCK_SLOTS)
        before_rows(memory, running, 1)
        assert memory.plan.kv == 2 * model.SHAPE.block_bytes
        assert not memory.caches.kept.block_names()

    def test_a_draft_models_keys_are_part_of_what_is_promised(self, model: Model) -> None:
        """Half as many slots fit where it has as many layers, and what was checked then fits a pass."""
        memory = model.memory(spare=13 * MIB, draft_kv=model.SHAPE)
        assert memory.admits(2 * BLOCK_SLOTS)
        assert not memory.admits(2 * BLOCK_SLOTS + 1)
        assert memory.most_tokens([BLOCK_SLOTS], BLOCK_SLOTS, 512) == BLOCK_SLOTS
        with pytest.raises(MemoryCeilingError):
            memory.most_tokens([BLOCK_SLOTS], BLOCK_SLOTS + 2, 512)
        before_rows(memory, memory.new_cache(), BLOCK_SLOTS + 2)


def test_pressure_from_outside_takes_weights_and_gives_them_back(model: Model) -> None:
    memory = model.memory(spare=10 * MIB + model.weights.pass_bytes, relief=model.relief())
    limits: list[int] = []
    model.weights.limit_resident = limits.append  # type: ignore[method-assign]
    before_rows(memory, memory.new_cache(), 1)
    room_of(memory).relieve()
    assert limits == [model.weights.pass_bytes]
    model.now, model.state = 1.0, replace(CALM, available=0)
    room_of(memory).relieve()
    before_rows(memory, memory.new_cache(), 1)
    assert limits == [model.weights.pass_bytes, 0, 0]


def test_a_bound_on_weights_in_any_case(model: Model) -> None:
    memory = model.memory(spare=10 * MIB + model.weights.pass_bytes, max_resident=7000)
    before_rows(memory, memory.new_cache(), 1)
    for name in model.weights.tensors:
        if model.weights.tensors[name].shape[1:] and "embed" not in name:
            for _ in model.weights.pieces(name):
                pass
    assert 0 < model.weights.resident_bytes <= 7000


class TestGuesses:
    """Rows for guesses fit under the ceiling, and take little of the weights' room."""

    @pytest.mark.parametrize("spare", [0, 1, 5, 40, 700])
    @pytest.mark.parametrize("sequences", [1, 3])
    @pytest.mark.parametrize("draft", [False, True])
    def test_as_many_as_there_is_room_for(self, model: Model, spare: int, sequences: int, draft: bool) -> None:
        memory = model.memory(spare=spare * MIB + sequences * 8 * MIB, draft_kv=model.SHAPE if draft else None)
        slots = {memory.new_cache(): BLOCK_SLOTS // 2 for _ in range(sequences)}
        guesses = memory.most_guesses(slots, sequences)
        assert guesses >= 0
        if guesses:
            before_pass(memory, slots, sequences, sequences, guesses)
            plan = memory.plan
            parts = ("process", "scratch", "draft", "ring", "allowance", "kv", "activations", "resident")
            assert sum(getattr(plan, part) for part in parts) <= plan.ceiling
        if spare == 700:
            assert guesses > 100
            assert memory.most_guesses(slots, sequences + 1000) < guesses

    def test_they_take_a_share_of_the_ceiling_at_most(self, model: Model) -> None:
        memory = model.memory(spare=8 << 30)
        cache = memory.new_cache()
        before_rows(memory, cache, 1)
        plain = memory.plan
        guesses = memory.most_guesses({cache: 1}, 1)
        before_pass(memory, {cache: 1}, 1, 1, guesses)
        more = memory.plan.kv + memory.plan.activations - plain.kv - plain.activations
        assert GUESS_SHARE * BIG * 0.9 < more <= GUESS_SHARE * BIG + model.SHAPE.block_bytes

    def test_none_where_nothing_is_left(self, model: Model) -> None:
        memory = model.memory(spare=0)
        caches = {memory.new_cache(): 3 * BLOCK_SLOTS for _ in range(9)}
        assert memory.most_guesses(caches, 9) == 0

    def test_a_pass_over_as_many_guesses_fits(self, model: Model) -> None:
        """As the engine then plans it, with the tree's rows in the caches."""
        memory = model.memory(spare=40 * MIB)
        cache = memory.new_cache()
        cache.reserve(BLOCK_SLOTS)
        cache.truncate(BLOCK_SLOTS - 1)
        guesses = memory.most_guesses({cache: BLOCK_SLOTS}, 1)
        assert guesses > BLOCK_SLOTS
        before_pass(memory, {cache: cache.length + guesses + 1}, guesses + 1, guesses + 1)
        assert memory.plan.kv == model.SHAPE.bytes_for(BLOCK_SLOTS + guesses)


class TestDrafts:
    def test_a_draft_models_caches_count(self, model: Model) -> None:
        """One for each of the target's, of as many slots."""
        kv = []
        for draft in (None, replace(model.SHAPE, layers=8)):
            memory = model.memory(spare=900 * MIB, draft_kv=draft)
            others = [memory.new_cache() for _ in range(2)]
            others[0].reserve(3 * BLOCK_SLOTS)
            before_rows(memory, memory.new_cache(), BLOCK_SLOTS + 1)
            kv.append(memory.plan.kv)
            del others
        assert kv == [5 * model.SHAPE.block_bytes, 5 * model.SHAPE.block_bytes * 5 // 4]

    def test_one_that_was_dropped_leaves_its_memory_to_the_weights(self, model: Model) -> None:
        weights = model.weights.pass_bytes
        memory = model.memory(spare=4 * MIB + weights // 2, draft_kv=model.SHAPE)
        budget, room = memory.budget, room_of(memory)
        room.share = replace(room.share, budget=replace(budget, draft=3 * MIB, process=budget.process - 3 * MIB))
        cache = memory.new_cache()
        before_rows(memory, cache, LEAST_CHUNK_ROWS)
        assert memory.plan.resident == weights // 2
        assert memory.plan.draft == 3 * MIB
        memory.drop_draft(3 * MIB)
        before_rows(memory, cache, LEAST_CHUNK_ROWS)
        assert memory.plan.draft == 0
        assert memory.plan.kv == model.SHAPE.block_bytes
        assert memory.plan.resident == weights

    def test_whether_all_weights_stay_in_memory(self, model: Model) -> None:
        weights = model.weights.pass_bytes
        for spare, holds in ((2 * weights, True), (-8 * MIB, False)):
            budget = model.memory(spare=max(0, spare)).budget
            if not holds:
                budget = replace(budget, draft=weights // 2 + 4 * MIB)
            assert budget.holds_all() is holds


def test_blocks_of_what_has_ended_are_free_though_no_pass_follows() -> None:
    with LLM.open("demo", draft="none", threads=1) as llm:
        planes, block = llm.model.planes, llm.kv_shape.block_bytes
        prompt = random_tokens(5 * BLOCK_SLOTS, 1000, seed=1)
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=BLOCK_SLOTS + 2, ignore_eos=True))
        kept = llm.memory.caches.kept
        assert planes.nbytes == len(kept.block_names()) * block > 0
        completion = llm.submit(random_tokens(3 * BLOCK_SLOTS, 1000, seed=2))
        llm.step()
        assert planes.nbytes > len(kept.block_names()) * block
        llm.cancel(completion)
        assert planes.nbytes == len(kept.block_names()) * block
        llm.logits(prompt)
        assert planes.nbytes == len(kept.block_names()) * block
        kept.clear()
        llm.encode("x" * 20_000)  # room is made for it
        assert planes.nbytes == 0
