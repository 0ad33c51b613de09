from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import LLM, SamplingParams
from penstock.errors import UsageError
from penstock.logprobs import logprobs_bytes, token_logprobs


@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40),
    top=st.integers(0, 20),
    data=st.data(),
)
def test_they_are_those_of_softmax(logits: list[float], top: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    told = token_logprobs(np.array(logits, np.float32), token, top)
    most = max(logits)
    whole = most + math.log(math.fsum(math.exp(x - most) for x in logits))
    assert told.logprob == pytest.approx(logits[token] - whole, abs=1e-9)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top]
    assert [logits[i] for i, _ in told.top] == [logits[i] for i in ranked]
    for index, logprob in told.top:
        assert logprob == pytest.approx(logits[index] - whole, abs=1e-9)


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_they_take_no_more_than_is_counted_for_them(top: int) -> None:
    logits = np.linspace(-9, 9, 500, dtype=np.float32)
    token_logprobs(logits, 300, top)
    tracemalloc.start()
    kept = [token_logprobs(logits, 300 + i % 2, top) for i in range(1000)]
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= len(kept) * logprobs_bytes(top)
    assert logprobs_bytes(None) == 0


class TestOfACompletion:
    def test_every_token_has_one(self) -> None:
        with LLM.open("demo") as llm:
            params = SamplingParams(temperature=0, max_tokens=12, logprobs=3)
            [output] = llm.generate(["def add(a, b):\n"], params)
            pieces = list(llm.stream("def add(a, b):\n", params))
        assert [told.token for told in output.logprobs] == output.token_ids
        assert [told.top[0][0] for told in output.logprobs] == output.token_ids, "greedy: the likeliest"
        assert [told for piece in pieces for told in piece.logprobs] == output.logprobs

    def test_what_a_stop_string_takes_back_has_none(self) -> None:
        with LLM.open("demo") as llm:
            free = llm.generate(["class A:\n"], SamplingParams(temperature=0, max_tokens=24))[0]
            stop = free.text[9:12]
            params = SamplingParams(temperature=0, max_tokens=24, logprobs=0, stop=stop)
            [output] = llm.generate(["class A:\n"], params)
        assert [told.token for told in output.logprobs] == output.token_ids
        assert all(told.top == () for told in output.logprobs)

    def test_none_unless_they_are_asked_for(self) -> None:
        with LLM.open("demo") as llm:
            [output] = llm.generate(["x"], SamplingParams(max_tokens=2))
        assert output.logprobs == []

    @pytest.mark.parametrize("count", [-1, 21, 1.5, True])
    def test_counts_out_of_range(self, count: int) -> None:
        with pytest.raises(UsageError, match="logprobs"):
            SamplingParams(logprobs=count)
