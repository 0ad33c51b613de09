"""The chat on a terminal: messages, answers, and a few commands."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.show import show
from penstock.cli.stats import console, print_stats
from penstock.cli.status_line import visible
from penstock.errors import ChatTemplateError, PenstockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.cli.show import Display
    from penstock.completion import Piece, Stats
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams
    from penstock.sessions.session import Session

SHOWN_CHARACTERS = 400
"""Of each message, when a conversation goes on."""

COMMANDS = {
    "/help": "list the commands",
    "/stats": "where the time of the last answer went, and how much of the context is left",
    "/continue": "go on with an answer that was stopped, or failed",
    "/save": "FILE: write the conversation to a file; as JSON where its name ends in .json",
    "/reset": "forget the conversation",
    "/exit": "leave, as Ctrl-D does",
}
HINTS = (
    "Enter sends a message. Alt-Enter, or a backslash at the end of a line, begins another line; what is pasted may "
    "have several. Ctrl-C stops an answer. A message that begins with / goes with a space before it."
)


class Chat:
    """A conversation between a person and a model."""

    def __init__(
        self,
        llm: LLM,
        session: Session,
        params: SamplingParams,
        display: Display,
        report: Callable[[list[Piece]], None] = lambda pieces: None,
    ) -> None:
        """`report` is told of every answer.

        Raises ChatTemplateError where the model has no chat template, UsageError where the session is no conversation.
        """
        if not llm.has_chat_template:
            raise ChatTemplateError(
                "This model has no chat template, so there is no chat.", "Give a prompt: penstock run MODEL PROMPT."
            )
        if session.turn is not None and session.turn.messages is None:
            raise UsageError("This session holds a text, not a conversation.", "Go on with it: --raw, and a prompt.")
        self._llm = llm
        self._session = session
        self._params = params
        self._display = display
        self._report = report
        self._stats: Stats | None = None
        """Of the last answer."""

    def run(self, read: Callable[[], str]) -> None:
        """Answer what `read` gives until it raises EOFError, or until /exit. Ctrl-C ends an answer, not the chat."""
        self._greet()
        if self._session.turn is not None and self._session.turn.end is None:
            self._answer(self._session.go_on)
        while True:
            try:
                text = read()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text.startswith("/"):
                if not self._command(text):
                    return
            elif text.strip():
                self._answer(lambda text=text: self._session.ask(text.strip(), self._params))  # type: ignore[misc]

    def _greet(self) -> None:
        print(f"{self._llm.path.name}: /help lists the commands, Ctrl-D leaves.")
        turn = self._session.turn
        if turn is None or not turn.messages:
            return
        messages = turn.messages if turn.end is None else self._session.messages
        print(f"The conversation goes on, at {len(self._session.tokens)} tokens and {len(messages)} messages:")
        for message in messages[-2:] if turn.end is not None else messages[-1:]:
            mark = "> " if message["role"] == "user" else ""
            print(visible(mark + _shortened(message["content"])))

    def _answer(self, begin: Callable[[], Iterator[Piece]]) -> None:
        """Show an answer. What goes wrong is told, and the chat goes on."""
        session = self._session
        pieces: list[Piece] = []
        try:
            try:
                coming = begin()
                pieces, interrupted = show(self._llm, coming, session.rows_to_come, self._display)
            except KeyboardInterrupt:
                interrupted = True
            with _uninterrupted():
                session.stop() if interrupted else session.told()
        except PenstockError as error:
            print(f"error: {error}", file=sys.stderr)
            interrupted = False
            if session.turn is not None and session.turn.end is None:
                print("/continue goes on with the answer.", file=sys.stderr)
        if interrupted:
            begun = session.turn is not None and session.turn.drawn
            print("(stopped; /continue goes on)" if begun else "(stopped; the question is dropped)")
        if pieces:
            self._stats = pieces[-1].stats
            self._report(pieces)

    def _command(self, text: str) -> bool:
        """Do what a command says; False where it ends the chat."""
        name, _, argument = text.strip().partition(" ")
        if name == "/exit":
            return False
        commands: dict[str, Callable[[], None]] = {
            "/help": _help,
            "/stats": self._show_stats,
            "/continue": self._continue,
            "/save": lambda: self._save(argument.strip()),
            "/reset": self._reset,
        }
        if name not in commands:
            print(f"There is no command {visible(name)}; /help lists them.")
        elif argument and name != "/save":
            print(f"{name} takes nothing behind it.")
        else:
            commands[name]()
        return True

    def _show_stats(self) -> None:
        if self._stats is not None and self._stats.log:
            print_stats(self._llm, self._stats)
        used, context = len(self._session.tokens), self._llm.context
        console.print(f"context: {used} of {context} tokens used, {context - used} left", soft_wrap=True)

    def _continue(self) -> None:
        if self._session.unfinished:
            self._answer(self._session.go_on)
        else:
            print("There is no unfinished answer.")

    def _save(self, name: str) -> None:
        if not name:
            print("/save takes the name of a file.")
            return
        path, messages = Path(name).expanduser(), self._session.messages
        try:
            with path.open("x", encoding="utf-8") as file:
                if path.suffix == ".json":
                    json.dump(messages, file, ensure_ascii=False, indent=2)
                else:
                    file.write("".join(f"## {m['role']}\n\n{m['content'].strip()}\n\n" for m in messages))
        except FileExistsError:
            print(f"{visible(name)} is there already; give another name.")
        except OSError as error:
            print(f"{visible(name)} cannot be written: {error.strerror}.")
        else:
            print(f"{len(messages)} messages are in {visible(name)}.")

    def _reset(self) -> None:
        try:
            self._session.reset()
        except PenstockError as error:
            print(f"error: {error}", file=sys.stderr)
        else:
            self._stats = None
            print("The conversation is forgotten.")


def _help() -> None:
    width = shutil.get_terminal_size().columns - 1
    for name, what in COMMANDS.items():
        print(textwrap.fill(f"{name:10}{what}", width, subsequent_indent=" " * 10))
    print(textwrap.fill(HINTS, width))


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} ..."


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait for nothing: it is passed over."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
