"""Ctrl-C at every line that runs: what follows is what would have followed, here and from the file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.cases import CASES
from helpers.interrupts import CtrlC, ctrl_c, each_once
from helpers.thorough import quick
from penstock import LLM, SamplingParams, Session
from penstock.sessions import log as session_log
from penstock.sessions import session, session_model
from penstock.sessions import state as session_state

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=3, ignore_eos=True)
QUESTIONS = [5, 6, 7, 8], [9, 10], [11]
FILES = {module.__file__ for module in (session, session_log, session_model, session_state)}


@pytest.fixture(autouse=True)
def unplugged(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here, and there is one model."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    identity = session_model.model_identity(llm.config, llm.tensors)
    monkeypatch.setattr("penstock.sessions.session_model.model_identity", lambda config, tensors: identity)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM.open(CASES["gqa-4"].write(tmp_path_factory.mktemp("model")), draft="none") as llm:
        yield llm


def ask(talk: Session) -> None:
    """An answer that is stopped, goes on, and is finished."""
    pieces = talk.complete(QUESTIONS[1], PARAMS)
    next(pieces)
    talk.stop()
    pieces.close()  # type: ignore[attr-defined]
    list(talk.go_on())
    talk.told()


def rest(talk: Session) -> list[int]:
    """All that is left to say, and then all that was said."""
    if talk.unfinished:
        list(talk.go_on())
    if len(talk.tokens) == len(QUESTIONS[0]) + 3:  # the question has not come so far
        list(talk.complete(QUESTIONS[1], PARAMS))
    list(talk.complete(QUESTIONS[2], PARAMS))
    return talk.tokens


@pytest.mark.parametrize("every", quick([8], [8, 1]))
@pytest.mark.parametrize("anew", [False, True], ids=["appended", "written anew"])
def test_at_every_line_of_an_answer(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool, every: int
) -> None:
    """Or every so many lines."""
    if anew:
        monkeypatch.setattr("penstock.sessions.session.SLACK_BYTES", -(1 << 30))
    path, killed = tmp_path / "talk", tmp_path / "killed"

    def interrupted(at: int | None) -> CtrlC:
        path.unlink(missing_ok=True)
        with Session(llm, path) as talk:
            list(talk.complete(QUESTIONS[0], PARAMS))
            with ctrl_c(FILES, at) as tracer:
                ask(talk)
            if tracer.came:
                talk.stop()
            shutil.copy(path, killed)
            assert rest(talk) == expected
            assert not llm.busy
        with Session(llm, path) as talk:
            assert talk.tokens == expected
        with Session(llm, killed) as talk:
            assert rest(talk) == expected
        return tracer

    with Session(llm) as talk:
        list(talk.complete(QUESTIONS[0], PARAMS))
        expected = rest(talk)
    numbers = each_once(interrupted(None).lines, last=not anew)
    assert len(numbers) > 90
    for at in numbers[::every]:
        assert interrupted(at).came


def test_at_every_line_of_forgetting(llm: LLM, tmp_path: Path) -> None:
    at, came = 0, True
    while came:
        at += 1
        with Session(llm, tmp_path / "talk") as talk:
            list(talk.complete(QUESTIONS[0], PARAMS))
            with ctrl_c(FILES, at) as tracer:
                talk.reset()
            came = tracer.came
            list(talk.complete(QUESTIONS[1], PARAMS))
            said = talk.tokens
        with Session(llm, tmp_path / "talk") as talk:
            assert talk.tokens == said
            talk.reset()
    assert at > 10
