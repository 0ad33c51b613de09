"""Text files that go with a question."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.cli.standard_input import read_text
from penstock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attached:
    """A file as it was when it was read."""

    name: str
    text: str

    def __str__(self) -> str:
        """As the model gets it: by its name, between more backticks than there are in a row in its text."""
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.text)), default=0))
        end = "" if self.text.endswith("\n") else "\n"
        return f"File {self.name}:\n\n{fence}\n{self.text}{end}{fence}"


def attach(path: Path, check_length: Callable[[int], None]) -> Attached:
    """Read a file as UTF-8; `check_length` is told how many characters there are, as they come, and may raise.

    Raises UsageError for what cannot be read and for what is no text; as `check_length` does.
    """
    name = str(path) if str(path).isprintable() else repr(str(path))
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            text = read_text(check_length, file)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.", "Check the file's name.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is no UTF-8 text: {error.reason} in it.", "Convert it, with iconv say; only text can be read."
        ) from error
    if "\0" in text:
        raise UsageError(f"{name} is no text: it has NUL bytes.", "Only text can be read.")
    if not text.strip():
        raise UsageError(f"{name} is empty.", "Leave it out, or give another file.")
    return Attached(name, text)


def with_files(question: str, files: Sequence[Attached]) -> str:
    """The question, and the files behind it."""
    return "\n\n".join(part for part in (question, *map(str, files)) if part)
