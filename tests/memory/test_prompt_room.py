"""Prompts that wait so that those which are computed take few passes."""

from __future__ import annotations

import re

import pytest

from helpers.cases import random_tokens
from penstock import LLM, SamplingParams
from penstock.errors import MemoryCeilingError
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.system.sizes import MIB

GREEDY = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> int:
    """A ceiling with room for the keys and values of five prompts, in a process whose size stays."""
    monkeypatch.setattr(machine, "footprint", lambda: Footprint(1000 * MIB, 0))
    with pytest.raises(MemoryCeilingError) as caught:
        LLM.open("demo", memory="1MiB", draft="none")
    least = re.search(r"least that works is (\d+) MiB", caught.value.remedy)
    assert least is not None
    return (int(least[1]) + 4) * MIB


def passes_and_tokens(llm: LLM, prompts: list[list[int]]) -> tuple[int, list[list[int]]]:
    completions = [llm.submit(prompt, GREEDY) for prompt in prompts]
    passes = 0
    while llm.busy:
        llm.step()
        passes += 1
    return passes, [completion.output().token_ids for completion in completions]


def test_fewer_share_the_passes_and_fewer_are_needed(memory: int) -> None:
    prompts = [random_tokens(450, 2000, seed=seed) for seed in range(12)]
    with LLM.open("demo", memory=memory, draft="none") as llm:
        plain, tokens = passes_and_tokens(llm, prompts)
    with LLM.open("demo", memory=memory, draft="none") as llm:
        llm.favour_prompts()
        passes, same = passes_and_tokens(llm, prompts)
    assert same == tokens
    assert 3 * passes < 2 * plain


@pytest.mark.thorough
def test_whoever_is_alone_waits_for_nobody(memory: int) -> None:
    with LLM.open("demo", memory=memory, draft="none") as llm:
        llm.favour_prompts()
        most = llm.memory.budget.most_kv(1) // llm.kv_shape.bytes_for(32) * 32
        passes, [tokens] = passes_and_tokens(llm, [random_tokens(most - 40, 2000)])
    assert len(tokens) == 2
    assert passes > 2


def test_what_others_have_computed_counts_for_nothing(memory: int) -> None:
    """Prompts that begin alike take part together, where they would have to wait for each other otherwise."""
    begin = random_tokens(640, 2000)
    with LLM.open("demo", memory=memory, draft="none") as llm:
        llm.favour_prompts()
        for seed in range(20):
            llm.submit(begin + random_tokens(20, 2000, seed=seed), GREEDY)
        assert llm.waiting == 0
        llm.step()
