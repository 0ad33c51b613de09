"""Chunks of rows through stages, several at work at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.assembled import new_cache, open_engine
from helpers.cases import random_tokens
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock.models.pipeline import LEAST_ROWS, chunk_rows, pipelined
from penstock.models.rows import Rows, SequenceRows


@given(st.integers(1, 7), st.integers(1, 5))
def test_each_leg_takes_chunks_in_their_order(chunks: int, legs: int) -> None:
    """And every chunk goes through all legs in theirs."""
    lock, seen = threading.Lock(), list[tuple[int, int]]()

    def run(chunk: int, leg: int, before: int | None) -> int:
        assert before == (None if leg == 0 else 100 * chunk + leg - 1)
        with lock:
            seen.append((chunk, leg))
        return 100 * chunk + leg

    assert pipelined(chunks, legs, run) == [100 * chunk + legs - 1 for chunk in range(chunks)]
    assert sorted(seen) == [(chunk, leg) for chunk in range(chunks) for leg in range(legs)]
    for leg in range(legs):
        assert [chunk for chunk, at in seen if at == leg] == list(range(chunks))
    for chunk in range(chunks):
        assert [at for one, at in seen if one == chunk] == list(range(legs))


def test_two_legs_are_at_work_at_a_time() -> None:
    """The second chunk is in the first leg while the first is in the second: each waits for the other there."""
    both = threading.Barrier(2)

    def run(chunk: int, leg: int, before: int | None) -> int:
        if chunk + leg == 1:
            both.wait(60)
        return 0

    assert pipelined(2, 2, run) == [0, 0]


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_what_fails_is_told_and_nothing_follows_it(chunks: int, legs: int, data: st.DataObject) -> None:
    bad = data.draw(st.tuples(st.integers(0, chunks - 1), st.integers(0, legs - 1)))
    seen = set[tuple[int, int]]()

    def run(chunk: int, leg: int, before: int | None) -> int:
        seen.add((chunk, leg))
        if (chunk, leg) == bad:
            raise OSError("on purpose")
        return 0

    with pytest.raises(OSError, match="on purpose"):
        pipelined(chunks, legs, run)
    assert not any(chunk >= bad[0] and leg >= bad[1] and (chunk, leg) != bad for chunk, leg in seen)


@given(st.integers(1, 5000), st.integers(1, 40))
def test_chunks_are_not_too_short(rows: int, stages: int) -> None:
    size = chunk_rows(rows, stages)
    assert size >= LEAST_ROWS
    assert -(-rows // size) <= 2 * stages


@pytest.mark.parametrize("count", [1, 3, 7, 16, 100])
def test_rows_in_parts_give_the_bits_of_the_whole(count: int, tmp_path) -> None:
    """Prompts and trees of several sequences, cut anywhere, one part after the other."""
    config = tiny_config(num_hidden_layers=2)
    write_checkpoint(tmp_path, config)
    prompt = random_tokens(30, 96, 2)

    def rows(engine) -> Rows:
        first, second = new_cache(engine), new_cache(engine)
        tree = SequenceRows.tree(first, prompt[:6], [-1, 0, 0, 1, 2, 4])
        return Rows([tree, SequenceRows.plain(second, prompt)])

    layers = range(2)
    with open_engine(tmp_path) as engine:
        whole = engine.chain.hidden(rows(engine), layers)
    with open_engine(tmp_path) as engine:
        parts = rows(engine).chunks(count)
        assert [len(part) for part in parts[:-1]] == [count] * (len(parts) - 1)
        pieces = [engine.chain.hidden(part, layers) for part in parts]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
