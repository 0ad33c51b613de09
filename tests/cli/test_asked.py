"""What `penstock run` makes of a prompt and of every kind of standard input."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import pytest

from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.cli import asked
from penstock.cli.asked import StandardInputWarning, asked_text
from penstock.errors import ContextError, UsageError

Open = Callable[[int], None]
posix = pytest.mark.skipif(os.name == "nt", reason="needs select on pipes")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes a descriptor standard input."""
    with ExitStack() as stack:
        yield lambda number: monkeypatch.setattr(sys, "stdin", stack.enter_context(os.fdopen(number)))


@pytest.fixture
def piped(use: Open) -> Iterator[FileIO]:
    """The writing end of a pipe that is standard input."""
    ours, theirs = os.pipe()
    use(ours)
    with FileIO(theirs, "w") as file:
        yield file


def write(piped: FileIO, data: bytes) -> None:
    """All that is to come."""
    piped.write(data)
    piped.close()


def text_of(prompt: str | None, stdin: bool | None = None, optional: bool = False) -> str:
    return asked_text(prompt, stdin, lambda characters: None, optional)


class TestTextThatIsPiped:
    @pytest.mark.parametrize("stdin", [None, True])
    def test_follows_the_prompt(self, piped: FileIO, stdin: bool | None) -> None:
        write(piped, "x = 1\n\tä".encode())
        assert text_of("Explain.", stdin) == "Explain.\n\nx = 1\n\tä"

    @pytest.mark.parametrize("prompt", [None, "-"])
    def test_is_the_prompt(self, piped: FileIO, prompt: str | None) -> None:
        write(piped, b"x = 1\n")
        assert text_of(prompt) == "x = 1\n"

    def test_is_left_alone_where_that_is_said(self, piped: FileIO) -> None:
        write(piped, b"x = 1\n")
        assert text_of("Explain.", stdin=False) == "Explain."

    def test_from_a_file_or_a_socket(self, use: Open, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("x = 1")
        use(os.open(tmp_path / "text", os.O_RDONLY))
        assert text_of("Explain.") == "Explain.\n\nx = 1"
        ours, theirs = socket.socketpair()
        theirs.sendall(b"y = 2")
        theirs.close()
        use(ours.detach())
        assert text_of("Explain.") == "Explain.\n\ny = 2"

    def test_is_checked_as_it_comes(self, piped: FileIO) -> None:
        def check(characters: int) -> None:
            raise ContextError(f"{characters} are too many.")

        write(piped, b"12345")
        with pytest.raises(ContextError, match="5 are too many"):
            asked_text("Explain.", None, check)

    @pytest.mark.parametrize("prompt", ["Explain.", "-"])
    def test_that_is_no_text(self, piped: FileIO, prompt: str) -> None:
        write(piped, b"ab\xff")
        with pytest.raises(UsageError, match=r"Standard input is no utf-8 text: invalid start byte at byte 2"):
            text_of(prompt)


class TestNothingIsPiped:
    """A prompt is answered by itself, at once and without a word."""

    def check(self) -> None:
        assert text_of("Explain.") == "Explain."

    def test_an_empty_pipe(self, piped: FileIO) -> None:
        piped.close()
        self.check()

    def test_the_null_device(self, use: Open) -> None:
        use(os.open(os.devnull, os.O_RDONLY))
        self.check()

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no such device")
    def test_a_device_without_an_end(self, use: Open) -> None:
        use(os.open("/dev/zero", os.O_RDONLY))
        self.check()

    @pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
    def test_a_terminal(self, use: Open) -> None:
        ours, theirs = os.openpty()
        use(theirs)
        self.check()
        assert asked.stdin_is_terminal()
        assert text_of(None, optional=True) == ""
        os.close(ours)

    def test_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        self.check()
        assert not asked.stdin_is_terminal()

    def test_no_file_at_all(self) -> None:
        self.check()  # pytest's own


class TestSilence:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asked, "SILENT_SECONDS", 0.01)

    @posix
    def test_a_silent_pipe_is_not_waited_for(self, piped: FileIO) -> None:
        with pytest.warns(
            StandardInputWarning, match="nothing came .*--stdin waits for it, --no-stdin leaves it alone"
        ):
            assert text_of("Explain.") == "Explain."

    @posix
    def test_a_silent_socket(self, use: Open) -> None:
        ours, theirs = socket.socketpair()
        use(ours.detach())
        with pytest.warns(StandardInputWarning):
            assert text_of("Explain.") == "Explain."
        theirs.close()

    @pytest.mark.parametrize(("prompt", "stdin"), [("Explain.", True), ("-", None), (None, None)])
    def test_is_waited_for_where_that_is_said(self, piped: FileIO, prompt: str | None, stdin: bool | None) -> None:
        late = threading.Thread(target=lambda: (time.sleep(0.1), write(piped, b"x = 1")))
        late.start()
        assert text_of(prompt, stdin).endswith("x = 1")
        late.join()

    def test_what_has_begun_is_read_to_its_end(self, piped: FileIO) -> None:
        piped.write(b"x = ")
        late = threading.Thread(target=lambda: (time.sleep(0.1), write(piped, b"1")))
        late.start()
        assert text_of("Explain.") == "Explain.\n\nx = 1"
        late.join()


class TestNoPrompt:
    def test_empty(self, piped: FileIO) -> None:
        piped.close()
        with pytest.raises(UsageError, match="There is no prompt: standard input is empty"):
            text_of(None)
        assert text_of(None, optional=True) == ""

    @pytest.mark.parametrize("prompt", [None, "-"])
    def test_left_alone(self, piped: FileIO, prompt: str | None) -> None:
        write(piped, b"x")
        with pytest.raises(UsageError, match="--no-stdin leaves no prompt"):
            text_of(prompt, stdin=False)

    def test_a_session_may_go_on_without(self, piped: FileIO) -> None:
        assert text_of(None, stdin=False, optional=True) == ""

    @pytest.mark.parametrize(("prompt", "stdin"), [("-", None), (None, None), ("Explain.", True)])
    def test_closed(self, monkeypatch: pytest.MonkeyPatch, prompt: str | None, stdin: bool | None) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(UsageError, match="standard input is closed"):
            text_of(prompt, stdin)


class TestTheCommand:
    OPTIONS = ("--temperature", "0", "--max-tokens", "3", "--json")

    def run(self, *arguments: str, stdin: str) -> dict[str, object]:
        command = [sys.executable, "-m", "penstock", "run", "demo", *arguments, *self.OPTIONS]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)
        assert (result.returncode, result.stderr) == (0, "")
        said: dict[str, object] = json.loads(result.stdout)
        return said

    def test_one_message_of_the_user(self, tmp_path: Path) -> None:
        message = "Explain.\n\nx = 1\n"
        params = SamplingParams(temperature=0, max_tokens=3)
        with LLM.open("demo") as llm:
            chat = llm.chat([{"role": "user", "content": message}], params)
            [raw] = llm.generate([message], params)
        assert self.run("Explain.", stdin="x = 1\n")["token_ids"] == chat.token_ids
        assert self.run("Explain.", "--raw", stdin="x = 1\n")["token_ids"] == raw.token_ids
        path = str(tmp_path / "session")
        assert self.run("Explain.", "--session", path, stdin="x = 1\n")["token_ids"] == chat.token_ids

    @pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
    @pytest.mark.parametrize(("closed", "code"), quick(2, [("Explain. <&-", 0), ("- <&-", 2), ("- </dev/null", 2)]))
    def test_nothing_to_read(self, closed: str, code: int) -> None:
        command = f"'{sys.executable}' -m penstock run demo --max-tokens 1 {closed}"
        result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == code
        assert "Traceback" not in result.stderr
        assert (result.stderr == "") == (code == 0)
