"""What the model is told beforehand, another answer to a question, and a question taken back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from penstock import LLM, SamplingParams, Session
from penstock.errors import SessionError, UsageError

pytestmark = pytest.mark.usefixtures("no_fsync")

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=6, ignore_eos=True)
OTHER = SamplingParams(temperature=0.9, seed=4, max_tokens=6, ignore_eos=True)


def ask(session: Session, question: str, params: SamplingParams = PARAMS) -> str:
    return "".join(piece.text for piece in session.ask(question, params))


def reopened(llm: LLM, path: Path) -> Session:
    """The session as one finds it that was killed just now."""
    return Session(llm, shutil.copy(path, path.with_name(f"{path.name}+")))


class TestSystem:
    def test_it_comes_first_and_is_kept(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            session.system = "Answer in Python."
            said = ask(session, "write a class")
            with reopened(llm, tmp_path / "talk") as again:
                assert again.system == "Answer in Python."
                ask(again, "another")
                assert [m["role"] for m in again.messages] == ["system", *["user", "assistant"] * 2]
        conversation = [
            {"role": "system", "content": "Answer in Python."},
            {"role": "user", "content": "write a class"},
        ]
        assert said == llm.chat(conversation, PARAMS).text

    def test_a_later_one_takes_its_place(self, llm: LLM) -> None:
        with Session(llm) as session:
            for system in ("one", "two", None):
                session.system = system
                ask(session, "write a class")
                first = session.messages[0]
                assert first["content"] == (system or "write a class")
            assert len(session.messages) == 6

    def test_forgetting_the_conversation_leaves_it(self, llm: LLM) -> None:
        with Session(llm) as session:
            session.system = "one"
            ask(session, "write a class")
            session.reset()
            ask(session, "another")
            assert [m["content"] for m in session.messages][:2] == ["one", "another"]


class TestRetry:
    def test_another_answer_comes_of_the_same_conversation(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            ask(session, "write a class")
            first = ask(session, "another")
            pieces = list(session.retry(OTHER))
            assert pieces[-1].stats.log[0].rows == 1  # the question's other positions are there
            second = session.messages[-1]["content"]
            expected = llm.generate([session.turn.prompt], OTHER)[0].text  # type: ignore[union-attr]
            assert second == expected != first
            assert len(session.messages) == 4
            with reopened(llm, tmp_path / "talk") as again:
                assert again.messages == session.messages
                assert ask(again, "more") == ask(session, "more")

    def test_after_a_kill_it_goes_on(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            ask(session, "write a class")
            coming = session.retry(OTHER)
            next(coming), next(coming)
            with reopened(llm, tmp_path / "talk") as again:
                assert again.unfinished
                rest = "".join(piece.text for piece in again.go_on())
            list(coming)
            assert rest == session.messages[-1]["content"]

    def test_nothing_was_asked(self, llm: LLM) -> None:
        with Session(llm) as session, pytest.raises(UsageError, match="Nothing has been asked yet"):
            session.retry()
        with Session(llm) as session:
            list(session.complete("def", PARAMS))
            with pytest.raises(UsageError, match="Nothing has been asked yet"):
                session.undo()


class TestUndo:
    def test_the_conversation_is_as_it_was_before(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            session.system = "one"
            ask(session, "write a class")
            before = session.messages
            ask(session, "another")
            ask(session, "more")
            assert [session.undo(), session.undo()] == ["more", "another"]
            assert session.messages == before
            assert not session.unfinished
            with reopened(llm, tmp_path / "talk") as again:
                assert again.messages == before
                assert ask(again, "else") == ask(session, "else")
            expected = llm.generate([session.turn.prompt], PARAMS)[0].token_ids  # type: ignore[union-attr]
            assert session.turn.drawn == expected  # type: ignore[union-attr]

    def test_what_stays_is_not_computed_again(self, llm: LLM) -> None:
        with Session(llm) as session:
            ask(session, "write a class " * 20)
            ask(session, "another")
            session.undo()
            rows = list(session.ask("another", PARAMS))[-1].stats.log[0].rows
            assert rows < 20

    def test_then_another_answer_to_the_question_before(self, llm: LLM) -> None:
        with Session(llm) as session:
            ask(session, "write a class")
            ask(session, "another")
            session.undo()
            list(session.retry(OTHER))
            assert [m["content"] for m in session.messages][:1] == ["write a class"]
            assert len(session.messages) == 2

    def test_the_first_question(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            ask(session, "write a class")
            assert session.undo() == "write a class"
            assert session.messages == session.tokens == []
            with pytest.raises(UsageError, match="Nothing has been asked yet"):
                session.undo()
            with reopened(llm, tmp_path / "talk") as again:
                assert again.turn is None

    def test_a_question_whose_answer_had_not_begun(self, llm: LLM) -> None:
        with Session(llm) as session:
            ask(session, "write a class")
            session.ask("another", PARAMS)
            session.stop()
            assert session.undo() == "another"
            assert len(session.messages) == 2

    def test_a_disk_that_is_full(self, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise SessionError("No room.")

        with Session(llm, tmp_path / "talk") as session:
            ask(session, "write a class")
            ask(session, "another")
            before = session.messages
            with monkeypatch.context() as patch:
                patch.setattr("penstock.sessions.log.SessionLog.append", full)
                with pytest.raises(SessionError, match="No room"):
                    session.undo()
            assert session.messages == before
            with reopened(llm, tmp_path / "talk") as again:
                assert again.messages == before
            ask(session, "more")
            with reopened(llm, tmp_path / "talk") as again:
                assert again.messages == session.messages


def test_a_long_question_that_was_stopped_keeps_what_whole_passes_computed(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.engine.scheduler, "max_rows", 32)
    question, passes, step = "write a class " * 30, 0, llm.step

    def stepping() -> object:
        nonlocal passes
        if passes == 2:
            raise KeyboardInterrupt
        passes += 1
        return step()

    with Session(llm, tmp_path / "talk") as session:
        with monkeypatch.context() as patch:
            patch.setattr(llm, "step", stepping)
            with pytest.raises(KeyboardInterrupt):
                list(session.ask(question, PARAMS))
        session.stop()
        rows = len(session.tokens)
        assert session.rows_to_come == rows - 64
        with reopened(llm, tmp_path / "talk") as again:
            assert again.rows_to_come == rows - 63  # and the position that is a test
            said = "".join(piece.text for piece in again.go_on())
        assert said == llm.chat([{"role": "user", "content": question}], PARAMS).text
