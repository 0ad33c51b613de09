"""The chat from its beginning to its end: what is typed is a message, or a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.cli.chat_commands import run_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.cli.chat import Chat


def run_chat(chat: Chat, read: Callable[[], str]) -> None:
    """Answer what `read` gives until it raises EOFError, or until /exit. Ctrl-C ends an answer, not the chat."""
    chat.greet()
    turn = chat.session.turn
    if turn is not None and turn.end is None:
        chat.answer(chat.session.go_on)
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.startswith("/"):
            if not run_command(chat, text):
                return
        elif text.strip():
            chat.ask(text.strip())
