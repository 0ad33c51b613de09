"""Commands of the chat that change what is asked, and how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock import LLM, SamplingParams, Session
from penstock.cli.chat import Chat
from penstock.cli.chat_loop import run_chat

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", draft="none", context=200) as llm:
        yield llm


@pytest.fixture
def session(llm: LLM) -> Iterator[Session]:
    with Session(llm) as session:
        yield session


def talk(session: Session, *typed: str, params: SamplingParams = PARAMS) -> Chat:
    """Type these lines, and then Ctrl-D."""
    lines = iter(typed)

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat(session._llm, session, params, "text")
    run_chat(chat, read)
    return chat


class TestFile:
    def test_it_goes_with_the_next_message_and_no_other(
        self, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "a file"
        path.write_text("Two.")
        talk(session, f"/file {path}", "Zero.", "One.")
        contents = [message["content"] for message in session.messages]
        assert contents[0] == f"Zero.\n\nFile {path}:\n\n```\nTwo.\n```"
        assert contents[2] == "One."
        assert f"{path} goes with the next message: 4 characters, about " in capsys.readouterr().out

    def test_it_stays_where_the_message_cannot_be_asked(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("Two.")
        talk(session, f"/file {tmp_path / 'file'}", "word " * 300, "Zero.")
        assert "Two." in session.messages[0]["content"]

    def test_none_that_can_be_read(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        chat = talk(session, "/file", "/file /no/such")
        shown = capsys.readouterr()
        assert "/file takes FILE behind it." in shown.out
        assert "error: /no/such cannot be read: No such file" in shown.err
        assert chat.files == []


class TestSystem:
    def test_it_is_told_before_the_conversation(
        self, llm: LLM, session: Session, capsys: pytest.CaptureFixture[str]
    ) -> None:
        talk(session, "/system", "/system Be terse.", "Zero.", "/system")
        shown = capsys.readouterr().out
        assert "The model is told nothing before the conversation." in shown
        assert "From the next message on" in shown
        assert shown.endswith("Be terse.\n")
        said = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Zero."}]
        assert session.messages == [*said, {"role": "assistant", "content": llm.chat(said, PARAMS).text}]

    def test_it_can_be_dropped(self, session: Session) -> None:
        talk(session, "/system Be terse.", "Zero.", "/system -", "One.")
        assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2


class TestSet:
    def test_what_is_set(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "/set", params=SamplingParams(temperature=0.5, stop=("x",)))
        shown = capsys.readouterr().out
        for line in (
            "temperature         0.5\n",
            "top_p               1.0 (the model's)\n",
            "seed                another one for every answer\n",
            "max_tokens          to the end of the context\n",
            "stop                ('x',)\n",
        ):
            assert line in shown

    def test_changes(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        chat = talk(session, "/set temperature 0.25", "/set top-k 4", "/set stop \\n\\n", "/set seed default", "Zero.")
        assert chat.params == SamplingParams(
            temperature=0.25, top_k=4, stop="\n\n", seed=None, max_tokens=6, ignore_eos=True
        )
        assert "temperature is 0.25, from the next answer on." in capsys.readouterr().out
        assert session.turn is not None
        assert session.turn.params.temperature == 0.25
        assert talk(session, "/set stop default").params.stop == ()

    def test_what_cannot_be_set(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        chat = talk(session, "/set heat 1", "/set top_k 1.5", "/set top_p x", "/set temperature 3", "/set seed")
        shown = capsys.readouterr()
        assert "There is no heat to set; there are temperature, top_p, " in shown.out
        assert "1.5 is no whole number." in shown.out
        assert "x is no number." in shown.out
        assert "error: temperature=3.0" in shown.err
        assert "seed is 3; /set seed VALUE changes it." in shown.out
        assert chat.params == PARAMS


class TestRetryAndUndo:
    def test_another_answer(self, session: Session) -> None:
        talk(session, "Zero.")
        first = session.turn
        talk(session, "/retry")
        assert first is not None
        assert session.turn is not None
        assert session.turn.params.seed != first.params.seed
        assert session.turn.prompt == first.prompt
        assert len(session.messages) == 2

    def test_at_temperature_0_it_would_be_the_same(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "Zero.", "/retry", params=SamplingParams(temperature=0, max_tokens=4))
        assert "The temperature is 0, so the same answer comes again" in capsys.readouterr().out

    def test_taken_back(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "Zero.", "One.", "/undo")
        assert "Taken back: One." in capsys.readouterr().out
        assert [message["content"] for message in session.messages][:1] == ["Zero."]
        assert len(session.messages) == 2

    def test_nothing_to_take_back(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "/undo", "/retry")
        assert capsys.readouterr().err.count("error: Nothing has been asked yet.\nAsk something first.") == 2
