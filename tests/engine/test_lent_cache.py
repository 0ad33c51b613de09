"""A cache that outlives its generation, or comes from elsewhere."""

from __future__ import annotations

import pytest

from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.errors import UsageError
from penstock.models.kv_cache import BLOCK_SLOTS, KvCache, KvCount

PARAMS = SamplingParams(temperature=1, seed=3, max_tokens=40)


def copy(llm: LLM, cache: KvCache) -> KvCache:
    other = llm.new_cache()
    for slot in range(cache.length):
        llm.chain.append_slot(other, llm.chain.read_slot(cache, slot))
    return other


@pytest.mark.parametrize("kv_dtype", quick(1, ["bf16", "f32"]))
def test_a_generation_goes_on_with_slots_that_were_copied(kv_dtype: str) -> None:
    with LLM.open("demo", draft="none", kv_dtype=kv_dtype) as llm:
        prompt = llm.encode("def add(a, b):\n    return a + b\n\n\ndef mul(")
        expected = llm.generate([prompt], PARAMS)[0].token_ids
        for passes in (1, 5, 39):
            cache = llm.new_cache()
            first = llm.submit(prompt, PARAMS, cache=cache)
            for _ in range(passes):
                llm.step()
            drawn = list(first.sequence.token_ids)
            llm.cancel(first)
            assert cache.length == len(prompt) + passes - 1
            second = llm.submit(prompt, PARAMS, drawn=drawn, cache=copy(llm, cache))
            rows = []
            while second.runs:
                rows.append(llm.step().rows)
            assert rows == [1] * (40 - passes)
            assert second.output().token_ids == expected
            llm.cancel(second)


def test_it_stays_as_it_is_when_the_generation_ends() -> None:
    with LLM.open("demo", draft="none") as llm:
        cache = llm.new_cache()
        completion = llm.submit([5, 6, 7], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), cache=cache)
        while completion.runs:
            llm.step()
        llm.cancel(completion)
        assert cache.length == 5
        assert cache.n_blocks == 1


def test_what_it_holds_is_counted_once() -> None:
    """Two blocks that are there and a promise of three: no more than three."""
    with LLM.open("demo", draft="none") as llm:
        cache = llm.new_cache()
        for _ in range(BLOCK_SLOTS + 1):
            llm.chain.append_slot(cache, bytes(llm.kv_shape.slot_bytes))
        completion = llm.submit(
            list(range(40, 40 + BLOCK_SLOTS + 2)), SamplingParams(max_tokens=2 * BLOCK_SLOTS - 2), cache=cache
        )
        assert llm.memory.caches.taken() == KvCount(blocks=3)
        llm.cancel(completion)
        assert llm.memory.caches.taken() == KvCount(blocks=2)


def test_one_that_leaves_nothing_to_compute() -> None:
    with LLM.open("demo", draft="none") as llm:
        cache = llm.new_cache()
        for _ in range(3):
            llm.chain.append_slot(cache, bytes(llm.kv_shape.slot_bytes))
        with pytest.raises(UsageError, match="leaves no token to compute"):
            llm.submit([5, 6, 7], SamplingParams(max_tokens=3), cache=cache)


def test_what_it_holds_is_for_its_owner_alone() -> None:
    """No pass computed it, as far as the engine knows."""
    prompt = list(range(40, 40 + 2 * BLOCK_SLOTS + 3))
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    with LLM.open("demo", draft="none") as llm:
        [expected] = llm.generate([prompt], params)
        cache = llm.new_cache()
        for _ in range(2 * BLOCK_SLOTS):
            llm.chain.append_slot(cache, bytes(llm.kv_shape.slot_bytes))
        llm.memory.caches.kept.clear()
        owner = llm.submit(prompt, params, cache=cache)
        other = llm.submit(prompt, params)
        while other.runs:
            llm.step()
        assert other.output().token_ids == expected.token_ids
        for completion in (owner, other):
            llm.cancel(completion)
