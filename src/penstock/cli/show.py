"""Text as it comes."""

from __future__ import annotations

import shutil
import sys
import textwrap
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from penstock.cli.live import Live, is_terminal
from penstock.cli.status_line import StatusLine, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.cli.formatted_text import FormattedText
    from penstock.completion import Piece
    from penstock.llm import LLM

    Display = Literal["markdown", "words", "live", "text", "nothing"]
    """Above a line of status: Markdown laid out, text that breaks between words, or text as it comes; the latter alone;
    nothing at all."""


def choose_display(as_json: bool, quiet: bool, plain: bool, raw: bool) -> Display:
    """What to show of an answer while it comes. Not a terminal, or not to be formatted: the text, byte for byte."""
    if as_json:
        return "nothing"
    if quiet or not is_terminal():
        return "text"
    if plain:
        return "live"
    from penstock.cli import layouts, markdown_layout  # noqa: F401 before the model, which takes what memory is left

    return "words" if raw else "markdown"


def tell(text: str, display: Display) -> None:
    """Show a text that is there as a whole."""
    if display in ("markdown", "words"):
        below = _below(display)
        below.write(text)
        below.end()
    else:
        print(visible(text))


def say(text: str) -> None:
    """Print a sentence or two of the program's own; on a terminal lines break between words."""
    if sys.stdout.isatty():
        width = max(20, shutil.get_terminal_size().columns - 1)
        text = textwrap.fill(visible(text), width, break_long_words=False, break_on_hyphens=False)
    print(text)


def _below(display: Display) -> StatusLine | FormattedText:
    """What shows text, and a line of status below it."""
    if display == "live":
        return StatusLine(sys.stdout)
    from rich.console import Console

    from penstock.cli.formatted_text import FormattedText
    from penstock.cli.layouts import WordLayout
    from penstock.cli.markdown_layout import THEME, MarkdownLayout

    console = Console(file=sys.stdout, force_terminal=True, theme=THEME)
    return FormattedText(sys.stdout, MarkdownLayout(console) if display == "markdown" else WordLayout(console))


def show(llm: LLM, coming: Iterator[Piece], rows: int, display: Display) -> tuple[list[Piece], bool]:
    """Show an answer as it comes; all pieces, and whether Ctrl-C ended them. `rows`: tokens of the first passes; 0
    where none is to come."""
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
    elif display != "text":
        with _warnings_afterwards(), Live(llm, rows, _below(display)) as live:
            if rows:
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
