from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.cases import demo_tokens
from helpers.guessing import knowing
from penstock import LLM, PenstockError, SamplingParams
from penstock.benchmarks.timed_decoding import decode, guessing, own_drafters, require_equal
from penstock.errors import ContextError, NumericsError

PROMPT = demo_tokens(9)
PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", threads=1, context=64) as llm:
        yield llm


def test_plainly(llm: LLM) -> None:
    with guessing(llm):
        run = decode(llm, PROMPT, PARAMS, tokens=6)
    assert (len(run.token_ids), run.tokens, len(run.passes)) == (7, 6, 6)
    assert [(one.tokens, one.totals.rows) for one in run.passes] == [(1, 1)] * 6
    assert all(one.seconds >= one.totals.seconds for one in run.passes)
    assert run.seconds == sum(one.seconds for one in run.passes)
    assert run.guesses.nodes == 0
    assert llm.engine.scheduler.active == []


def test_the_last_pass_is_a_whole_one(llm: LLM) -> None:
    with guessing(llm):
        plain = decode(llm, PROMPT, PARAMS, tokens=30)
    drafter = knowing([PROMPT + plain.token_ids])
    with guessing(llm, [drafter], 3):
        run = decode(llm, PROMPT, PARAMS, tokens=6)
    assert [one.tokens for one in run.passes] == [4, 4]
    assert run.token_ids == plain.token_ids[:9]
    assert (run.guesses.nodes, run.guesses.accepted) == (6, 6)


def test_at_most_what_the_parameters_allow(llm: LLM) -> None:
    run = decode(llm, PROMPT, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), tokens=6)
    assert len(run.token_ids) == 3


def test_another_speculator_for_a_while(llm: LLM) -> None:
    own = llm.engine.speculator
    assert own.drafters
    assert own_drafters(llm) == own.drafters
    with guessing(llm):
        assert own_drafters(llm) == []
    assert llm.engine.speculator is own


def test_errors(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContextError):
        decode(llm, PROMPT * 10, PARAMS, tokens=6)
    monkeypatch.setattr(llm.model, "head", lambda x: x * float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        decode(llm, PROMPT, PARAMS, tokens=6)
    assert llm.engine.scheduler.active == []


def test_equal_as_far_as_both_go() -> None:
    require_equal([1, 2, 3], [1, 2], "A run")
    require_equal([1], [1, 2], "A run")
    with pytest.raises(PenstockError, match=r"A run: token 1 is 5, and 2 in plain decoding\.") as error:
        require_equal([1, 2, 3], [1, 5, 3], "A run")
    assert "must not change a token" in error.value.remedy
