"""What `run` is asked: its argument, the text on standard input, or both.

Whoever pipes text to a prompt wants both. But standard input is also what a caller happened to leave open, and may stay
silent for ever: behind ssh, in a test runner, in whatever starts this program. None of these can be told from a slow
one. `llm` and `mods` read them all to the end, and hang on a silent one. Here one that says nothing for a while is left
alone, with a warning; `--stdin` and `--no-stdin` say what is meant.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import warnings
from typing import TYPE_CHECKING

from penstock.cli.standard_input import read_text
from penstock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

SILENT_SECONDS = 5.0
"""How long a pipe may say nothing before a prompt is answered without it."""


class StandardInputWarning(UserWarning):
    """Standard input that was not waited for."""


def stdin_is_terminal() -> bool:
    """Whether somebody types at standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def asked_text(
    prompt: str | None, stdin: bool | None, check_length: Callable[[int], None], optional: bool = False
) -> str:
    """The prompt; where it is None or "-", what comes on standard input; or one behind the other.

    stdin: whether to read standard input to its end behind a prompt; None does where it is a pipe, a socket or a file,
    and not silent. check_length: see `read_text`. optional: "" will do where there is no prompt.

    Raises UsageError where there is no prompt, or no text; as `check_length` does.
    """
    if prompt is None or prompt == "-":
        text = _read_instead(prompt, stdin, check_length, optional)
        if not text and not optional:
            raise UsageError("There is no prompt: standard input is empty.", "Give one as an argument, or text there.")
        return text
    text = _read(check_length) if stdin or (stdin is None and _has_text()) else ""
    return f"{prompt}\n\n{text}" if text else prompt


def _read_instead(prompt: str | None, stdin: bool | None, check_length: Callable[[int], None], optional: bool) -> str:
    if stdin is False:
        if prompt is None and optional:
            return ""
        raise UsageError("--no-stdin leaves no prompt.", "Give it as an argument, or leave --no-stdin out.")
    return "" if prompt is None and stdin is None and optional and stdin_is_terminal() else _read(check_length)


def _read(check_length: Callable[[int], None]) -> str:
    """All of standard input. Raises UsageError for what is no text."""
    if sys.stdin is None:
        raise UsageError("There is no text to read: standard input is closed.", "Give the prompt as an argument.")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "strict":
        sys.stdin.reconfigure(errors="strict")  # some locales let anything through, which no tokenizer takes
    try:
        return read_text(check_length)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Standard input is no {error.encoding} text: {error.reason} at byte {error.start:,} of a part of it.",
            "Convert it, with iconv say.",
        ) from error


def _has_text() -> bool:
    """Whether something comes, of a kind that may be meant for a prompt; a warning where it may yet come."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return False
    if os.name == "nt" or select.select([descriptor], [], [], SILENT_SECONDS)[0]:
        return True
    warnings.warn(
        f"nothing came on standard input for {SILENT_SECONDS:g} s, so the prompt is answered without it; --stdin waits "
        "for it, --no-stdin leaves it alone at once.",
        StandardInputWarning,
        stacklevel=2,
    )
    return False
