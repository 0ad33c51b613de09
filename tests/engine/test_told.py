"""What is to be told of tokens' probabilities is counted beside keys and values, as long as anybody has it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.assembled import limited, open_engine, stage_of
from helpers.checkpoints import write_checkpoint
from penstock import LLM, SamplingParams
from penstock.engine.engine import Engine
from penstock.logprobs import logprobs_bytes

TOKENS = 60
PARAMS = SamplingParams(temperature=0, seed=0, max_tokens=TOKENS, logprobs=20)
SILENT = SamplingParams(temperature=0, seed=0, max_tokens=TOKENS)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Engine]:
    write_checkpoint(tmp_path)
    with open_engine(tmp_path) as engine:
        yield engine


def test_one_waits_where_there_is_no_room_for_what_it_would_tell(plain: Engine) -> None:
    """Two sequences of two blocks each fit into ten; two that tell as much as six blocks more do not."""
    assert 5 < TOKENS * logprobs_bytes(20) / stage_of(plain).kv_shape.block_bytes < 8
    for params, waiting in ((SILENT, 0), (PARAMS, 1)):
        with limited(plain, blocks=10, kept_blocks=0) as engine:
            generations = [engine.add([1 + i], params) for i in range(2)]
            assert len(engine.scheduler.waiting) == waiting
            while engine.busy:
                engine.step()
            assert [len(generation.token_ids) for generation in generations] == [TOKENS] * 2


def taken(llm: LLM) -> int:
    """Bytes."""
    return llm.memory.rooms[0].share.kv_bytes(llm.memory.caches.taken())


def test_it_counts_while_anybody_has_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    gc.disable()  # nothing may have to wait for it
    try:
        with LLM.open(str(tmp_path), memory="1GiB", draft="none") as llm:
            before = taken(llm)
            completion = llm.submit([1, 2, 3], PARAMS)
            assert taken(llm) >= before + TOKENS * logprobs_bytes(20)
            while llm.busy:
                llm.step()
            llm.cancel(completion)
            drawn = len(completion.sequence.logprobs)
            assert taken(llm) == before + drawn * logprobs_bytes(20)
            assert drawn > 0
            del completion
            assert taken(llm) == before
    finally:
        gc.enable()
