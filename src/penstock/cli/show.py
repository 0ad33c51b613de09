"""Text as it comes."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from penstock.cli.live import Live, is_terminal
from penstock.cli.status_line import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.completion import Piece
    from penstock.llm import LLM

    Display = Literal["live", "text", "nothing"]
    """Text with a line of status below it; text alone; nothing at all."""


def choose_display(as_json: bool, quiet: bool) -> Display:
    """What to show of an answer while it comes."""
    if as_json:
        return "nothing"
    return "live" if is_terminal() and not quiet else "text"


def show(llm: LLM, coming: Iterator[Piece], rows: int, display: Display) -> tuple[list[Piece], bool]:
    """Show an answer as it comes; all pieces, and whether Ctrl-C ended them. `rows`: tokens of the first passes."""
    pieces: list[Piece] = []
    try:
        with _printer(llm, rows, display) as take:
            for piece in coming:
                pieces.append(piece)
                take(piece)
    except KeyboardInterrupt:
        return pieces, True
    return pieces, False


@contextmanager
def _printer(llm: LLM, rows: int, display: Display) -> Iterator[Callable[[Piece], None]]:
    """What takes the pieces; ends what it printed with a line break."""
    if display == "nothing":
        yield lambda piece: None
    elif display == "live":
        with _warnings_afterwards(), Live(llm, rows) as live:
            live.begin()
            yield live.print
    else:
        try:
            yield _print_plainly
        finally:
            print()


def _print_plainly(piece: Piece) -> None:
    print(visible(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)


@contextmanager
def _warnings_afterwards() -> Iterator[None]:
    """Hold warnings back until the screen is free for them."""
    held: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as held:
            yield
    finally:
        for warning in held:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
