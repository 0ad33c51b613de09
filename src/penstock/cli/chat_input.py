"""The line where a person types in a chat: history, several lines, completion of commands.

prompt_toolkit takes 24 MB, which only a chat should; so this module is imported by nothing else.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.shortcuts import CompleteStyle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.key_binding import KeyPressEvent

TAKE_FILES = ("/file", "/save")
"""Commands."""


def history_path() -> Path:
    """The file of what was typed in chats, in the user's state directory."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "penstock" / "history"


def prompt_session(commands: Sequence[str], keep_history: bool) -> PromptSession[str]:
    """What asks for a message: Enter sends it; Alt-Enter, or Enter behind a backslash, begins another line.

    What is pasted may have several lines, where the terminal tells what is pasted.
    """
    return PromptSession(
        [("bold", "> ")],
        multiline=True,
        prompt_continuation="  ",
        history=_history() if keep_history else InMemoryHistory(),
        key_bindings=_keys(),
        completer=_Commands(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
    )


def _history() -> History:
    """Kept in a file that only this user can read."""
    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        warnings.warn(f"{path}: {os.strerror(error.errno or 0)}; no history is kept.", stacklevel=2)
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def another_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Commands(Completer):
    """Completes the command that a message begins with, and the name of a file behind it."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/"):
            for command in self._commands:
                if command.startswith(typed):
                    yield Completion(command, -len(typed))
            name, space, path = typed.partition(" ")
            if space and name in TAKE_FILES:
                yield from self._paths.get_completions(Document(path), complete_event)
