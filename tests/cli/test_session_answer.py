"""What `run --session` makes of a prompt and of what its file holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams, Session
from penstock.cli.session_answer import session_answer
from penstock.errors import UsageError
from penstock.sessions.log import SessionWarning

PARAMS = SamplingParams(temperature=0, seed=5, max_tokens=6, ignore_eos=True)
PATH = Path("talk")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", draft="none") as llm:
        yield llm


@pytest.fixture
def session(llm: LLM) -> Iterator[Session]:
    with Session(llm) as session:
        yield session


def answer(session: Session, prompt: str | None, params: SamplingParams | None = None) -> str:
    params = params or SamplingParams(max_tokens=6)
    return "".join(piece.text for piece in session_answer(session, PATH, prompt, params, raw=False))


def test_the_same_prompt_goes_on_with_its_answer(session: Session) -> None:
    pieces = session.ask("write a class", PARAMS)
    said = next(pieces).text
    whole = answer(session, "write a class")
    assert whole.startswith(said)
    assert len(session.messages) == 2


def test_no_prompt_does_so_too(session: Session) -> None:
    next(session.ask("write a class", PARAMS))
    answer(session, None)
    assert not session.unfinished


def test_until_an_answer_was_shown_it_is_told_again(session: Session) -> None:
    first = answer(session, "write a class", PARAMS)
    assert answer(session, "write a class") == answer(session, None) == first
    session.told()
    answer(session, "write a class")
    assert len(session.messages) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": 0.5}, "began with --temperature 0, not 0.5"),
        ({"seed": 6}, "began with --seed 5, not 6"),
        ({"max_tokens": 7}, "began with --max-tokens 6, not 7"),
        ({"top_k": 3}, "began with --top-k 0, not 3"),
        ({"stop": ("x",)}, r"began with --stop \(\), not \('x',\)"),
        ({"presence_penalty": 0.5}, "began with --presence-penalty 0.0, not 0.5"),
    ],
)
def test_what_differs_from_how_an_answer_began_is_refused(session: Session, given: dict[str, Any], words: str) -> None:
    next(session.ask("write a class", PARAMS))
    with pytest.raises(UsageError, match=f"talk has an unfinished answer that {words}"):
        answer(session, "write a class", SamplingParams(**given))
    answer(session, "write a class", PARAMS)


@pytest.mark.parametrize(
    "began", [{"frequency_penalty": 0.5, "presence_penalty": -0.5}, {"logit_bias": {5: 1.5}}, {"stop": ("never said",)}]
)
def test_what_is_left_out_is_as_it_began(session: Session, began: dict[str, Any]) -> None:
    next(session.ask("write a class", replace(PARAMS, **began)))
    answer(session, None)
    assert not session.unfinished


def test_another_prompt_leaves_it_behind_and_says_so(session: Session) -> None:
    next(session.ask("write a class", PARAMS))
    with pytest.warns(SessionWarning, match="talk: the last answer is left unfinished"):
        answer(session, "another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(session, "and another")
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 3


@pytest.mark.parametrize("held", [False, True])
def test_nothing_to_answer(session: Session, held: bool) -> None:
    if held:
        answer(session, "write a class")
        session.told()
    with pytest.raises(UsageError, match=r"last answer is finished.\nGive a prompt" if held else "holds nothing yet"):
        answer(session, None)


def test_a_system_message_is_told_from_now_on_and_an_answer_that_began_without_it_goes_on_without(
    session: Session,
) -> None:
    pieces = session.ask("write a class", PARAMS)
    next(pieces)
    with pytest.raises(UsageError, match="began with --system None, not Be terse"):
        session_answer(session, PATH, None, SamplingParams(), raw=False, system="Be terse.")
    list(session_answer(session, PATH, None, SamplingParams(), raw=False, system=""))
    list(session_answer(session, PATH, "another", PARAMS, raw=False, system="Be terse."))
    assert session.messages[0] == {"role": "system", "content": "Be terse."}
