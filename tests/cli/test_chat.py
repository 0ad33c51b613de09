"""The chat: its commands, what Ctrl-C does, and how it looks on a terminal."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.on_terminal import OnTerminal
from penstock import LLM, SamplingParams, Session
from penstock.cli.chat import Chat
from penstock.cli.chat_commands import COMMANDS
from penstock.cli.chat_input import prompt_session
from penstock.cli.chat_loop import run_chat
from penstock.errors import ChatTemplateError, ReadError, SessionError, UsageError

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", draft="none", context=200) as llm:
        yield llm


@pytest.fixture
def session(llm: LLM) -> Iterator[Session]:
    with Session(llm) as session:
        yield session


def talk(session: Session, *typed: str | type[BaseException], params: SamplingParams = PARAMS) -> None:
    """Type these lines, and then Ctrl-D."""
    lines = iter([*typed, EOFError])

    def read() -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    run_chat(Chat(session._llm, session, params, "text"), read)


def answer_of(llm: LLM, *questions: str) -> list[str]:
    with Session(llm) as session:
        return ["".join(piece.text for piece in session.ask(question, PARAMS)) for question in questions]


class TestTalking:
    def test_answers_follow_on_what_was_said(
        self, llm: LLM, session: Session, capsys: pytest.CaptureFixture[str]
    ) -> None:
        talk(session, "write a class", "", "  ", "another")
        first, second = answer_of(llm, "write a class", "another")
        shown = capsys.readouterr().out
        assert shown == f"demo: /help lists the commands, Ctrl-D leaves.\n{first}\n{second}\n"
        assert len(session.messages) == 4

    def test_ctrl_c_at_the_prompt_and_ctrl_d(self, session: Session) -> None:
        talk(session, KeyboardInterrupt, "write a class", KeyboardInterrupt)
        assert len(session.messages) == 2

    def test_a_question_that_is_too_long_is_told_and_the_chat_goes_on(
        self, session: Session, capsys: pytest.CaptureFixture[str]
    ) -> None:
        talk(session, "word " * 300, "write a class")
        assert "a context of 200 has no room for it" in capsys.readouterr().err
        assert [m["content"] for m in session.messages][:1] == ["write a class"]

    def test_a_context_that_fills_ends_the_answer_and_not_the_chat(
        self, session: Session, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = SamplingParams(temperature=0, ignore_eos=True)
        talk(session, "write a class", "more", "/stats", "/reset", "write", "/stats", params=long)
        assert "context of 200 has no room" in capsys.readouterr().err
        assert session.messages[0]["content"] == "write"

    def test_a_disk_that_fails(
        self, llm: LLM, session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, count = llm.step, 0

        def failing() -> object:
            nonlocal count
            count += 1
            if count == 3:
                raise ReadError("The disk failed.", "Check it.")
            return step()

        monkeypatch.setattr(llm, "step", failing)
        talk(session, "write a class", "/continue")
        shown = capsys.readouterr()
        assert "error: The disk failed.\nCheck it.\n/continue goes on with the answer." in shown.err
        assert session.messages[1]["content"] == answer_of(llm, "write a class")[0]

    def test_no_chat_template(self, llm: LLM, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LLM, "has_chat_template", False)
        with pytest.raises(ChatTemplateError, match="no chat"):
            talk(session)

    def test_a_text(self, session: Session) -> None:
        list(session.complete("def", PARAMS))
        with pytest.raises(UsageError, match="holds a text, not a conversation"):
            talk(session)


class TestStopping:
    @pytest.fixture(params=[0, 3])
    def after(self, request: pytest.FixtureRequest, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> int:
        """Ctrl-C comes once so many passes were run."""
        step, count, passes = llm.step, 0, request.param

        def stepping() -> object:
            nonlocal count
            if count == passes:
                count += 1
                os.kill(os.getpid(), signal.SIGINT)
            count += 1
            return step()

        monkeypatch.setattr(llm, "step", stepping)
        return int(request.param)

    def test_ctrl_c_ends_the_answer_and_the_next_one_is_right(
        self, llm: LLM, session: Session, after: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        talk(session, "write a class", "another")
        shown = capsys.readouterr().out
        assert ("(stopped; /continue goes on" if after else "(stopped before the answer; /continue") in shown
        whole = answer_of(llm, "write a class")[0]
        if after:
            assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
            assert whole.startswith(session.messages[1]["content"])
            assert session.messages[1]["content"] != whole
        else:
            assert session.messages[0]["content"] == "another"
        assert session.turn is not None
        assert session.turn.drawn == llm.generate([session.turn.prompt], PARAMS)[0].token_ids

    def test_it_can_be_gone_on_with(self, llm: LLM, session: Session, after: int) -> None:
        talk(session, "write a class", "/continue", "/continue")
        assert session.messages[1]["content"] == answer_of(llm, "write a class")[0]


class TestCommands:
    def test_help(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "/help")
        shown = capsys.readouterr().out
        assert all(command in shown for command in COMMANDS)
        assert "Ctrl-C stops an answer" in shown

    def test_one_that_is_none(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "/quit\x1b[2J", "/reset now", " /reset", "/continue")
        shown = capsys.readouterr().out
        assert "There is no command /quit" in shown
        assert "/help lists them" in shown
        assert "\x1b" not in shown
        assert "/reset takes nothing behind it" in shown
        assert "There is no unfinished answer" in shown
        assert session.messages[0]["content"] == "/reset"  # a space makes it a message

    def test_exit(self, session: Session) -> None:
        talk(session, "/exit", "never")
        assert session.messages == []

    def test_stats(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        talk(session, "/stats", "write a class", "/stats")
        shown = capsys.readouterr().err
        used = len(session.tokens)
        assert shown.startswith("context: 0 of 200 tokens used, 200 left\n")
        assert "\n6 tokens in " in shown
        assert f"context: {used} of 200 tokens used, {200 - used} left" in shown

    def test_save(self, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = [str(tmp_path / name) for name in ("talk.json", "talk.md")]
        talk(session, "write a class", *(f"/save {n}" for n in names), f"/save {names[0]}", "/save", "/save /no/such/x")
        shown = capsys.readouterr().out
        assert json.loads(Path(names[0]).read_text()) == session.messages
        assert Path(names[1]).read_text().startswith("## user\n\nwrite a class\n\n## assistant\n\n")
        for words in (
            "2 messages are in",
            "is there already",
            "/save takes FILE behind it",
            "cannot be written: No such",
        ):
            assert words in shown

    def test_reset(self, llm: LLM, session: Session) -> None:
        talk(session, "write a class", "/reset", "another")
        assert [m["content"] for m in session.messages] == ["another", *answer_of(llm, "another")]

    def test_reset_on_a_disk_that_is_full(
        self, session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reset() -> None:
            raise SessionError("No room.")

        monkeypatch.setattr(session, "reset", reset)
        talk(session, "/reset")
        assert "error: No room." in capsys.readouterr().err


class TestGoingOn:
    def test_the_conversation_is_shown_and_an_unfinished_answer_goes_on(
        self, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "talk"
        first, second = answer_of(llm, "write a class", "another " * 9)
        with Session(llm, path) as session:
            talk(session, "write a class")
            next(session.ask("another " * 9, PARAMS))
        capsys.readouterr()
        with Session(llm, path) as session:
            talk(session)
            shown = capsys.readouterr().out.splitlines()
            assert "3 messages:" in shown[1]
            assert shown[2] == "> " + ("another " * 9).strip()
            assert "\n".join(shown[3:]) == second.rstrip("\n")
        with Session(llm, path) as session:
            talk(session)
        shown = capsys.readouterr().out.splitlines()
        assert "4 messages:" in shown[1]
        assert second.strip().splitlines()[0] in shown
        assert first

    def test_one_that_somebody_stopped_waits(
        self, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with Session(llm, tmp_path / "talk") as session:
            next(session.ask("write a class", PARAMS))
            session.stop()
        with Session(llm, tmp_path / "talk") as session:
            talk(session, "/continue")
            assert session.messages[1]["content"] == answer_of(llm, "write a class")[0]


class TestHistory:
    def test_it_is_kept_for_this_user_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        prompt_session([], keep_history=True).history.append_string("hello")
        path = tmp_path / "penstock" / "history"
        assert "+hello" in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert list(prompt_session([], keep_history=True).history.load_history_strings()) == ["hello"]

    def test_it_can_be_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        prompt_session([], keep_history=False).history.append_string("hello")
        assert list(tmp_path.iterdir()) == []

    def test_where_it_cannot_be_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        with pytest.warns(UserWarning, match="no history is kept"):
            prompt_session([], keep_history=True)


def test_on_a_terminal(tmp_path: Path) -> None:
    """Several lines, completion, Ctrl-C, history, and a restart."""
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    command = ("run", "demo", "--temperature", "0.7", "--seed", "1", "--draft", "none")
    command = (*command, "--session", str(tmp_path / "talk"))

    def prompts(count: int) -> object:
        return lambda raw: raw.count("\x1b[?2004h") >= count

    with OnTerminal(*command, environment=environment) as terminal:
        terminal.wait_for(prompts(1))  # type: ignore[arg-type]
        terminal.type("write\\\rtwo\x1b\rclasses\r")
        terminal.wait_for(lambda raw: " tokens" in raw)
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for(prompts(2))  # type: ignore[arg-type]
        terminal.type("/sta\t\r")
        terminal.wait_for(prompts(3))  # type: ignore[arg-type]
        terminal.type("\x1b[200~pasted\ntext\x1b[201~\x15\x7f\x15")
        terminal.type("\x04")
        assert terminal.end() == 0
    rows = "\n".join(terminal.rows)
    assert "> write\n  two\n  classes" in rows
    assert "(stopped; /continue goes on" in rows
    assert "context: " in rows
    assert "Traceback" not in rows
    assert "write\n+two\n+classes" in (tmp_path / "penstock" / "history").read_text()
    with OnTerminal(*command, environment=environment, columns=40) as terminal:
        terminal.wait_for(prompts(1))  # type: ignore[arg-type]
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "> write\ntwo\nclasses" in "\n".join(terminal.rows)
