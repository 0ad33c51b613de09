"""The chat on a terminal: messages and answers."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.cli.attached import with_files
from penstock.cli.show import say, show, tell
from penstock.cli.status_line import visible
from penstock.errors import ChatTemplateError, PenstockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.cli.attached import Attached
    from penstock.cli.show import Display
    from penstock.completion import Piece, Stats
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams
    from penstock.sessions.session import Session

SHOWN_CHARACTERS = 400
"""Of each message, when a conversation goes on."""
STOPPED = "(stopped; /continue goes on with it, /retry begins another answer)"
STOPPED_BEFORE = "(stopped before the answer; /continue answers the message, and another message takes its place)"


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
        self.llm = llm
        self.session = session
        self.params = params
        self._display = display
        self._report = report
        self.files: list[Attached] = []
        """What goes with the next message."""
        self.stats: Stats | None = None
        """Of the last answer."""

    def ask(self, question: str) -> None:
        """Answer a message, with the files that go with it."""
        question, before = with_files(question, self.files), self.session.turn
        self.answer(lambda: self.session.ask(question, self.params))
        if self.session.turn is not before:  # an error may have come first
            self.files.clear()

    def greet(self) -> None:
        """Say how to leave, and show the end of a conversation that goes on."""
        say(f"{self.llm.path.name}: /help lists the commands, Ctrl-D leaves.")
        turn = self.session.turn
        if turn is None or not turn.messages:
            return
        messages = turn.messages if turn.end is None else self.session.messages
        say(f"The conversation goes on, at {len(self.session.tokens)} tokens and {len(messages)} messages:")
        for message in messages[-2:] if turn.end is not None else messages[-1:]:
            if message["role"] == "user":
                print(visible(f"> {_shortened(message['content'])}"))
            else:
                self._apart()
                tell(_shortened(message["content"]), self._display)
                self._apart()

    @staticmethod
    @contextmanager
    def uninterrupted() -> Iterator[None]:
        """Let a second Ctrl-C wait for nothing: it is passed over."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def answer(self, begin: Callable[[], Iterator[Piece]]) -> None:
        """Show an answer. What goes wrong is told, and the chat goes on."""
        session = self.session
        pieces: list[Piece] = []
        self._apart()
        try:
            try:
                coming = begin()
                pieces, interrupted = show(self.llm, coming, session.rows_to_come, self._display)
            except KeyboardInterrupt:
                interrupted = True
            with self.uninterrupted():
                session.stop() if interrupted else session.told()
        except PenstockError as error:
            print(f"error: {error}", file=sys.stderr)
            interrupted = False
            if session.turn is not None and session.turn.end is None:
                print("/continue goes on with the answer.", file=sys.stderr)
        if interrupted:
            begun = session.turn is not None and session.turn.drawn
            say(STOPPED if begun else STOPPED_BEFORE)
        if pieces:
            self.stats = pieces[-1].stats
            self._report(pieces)
        self._apart()

    def _apart(self) -> None:
        """Set turns apart from each other, where it is a person who reads them."""
        if self._display != "text":
            print()


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} ..."
