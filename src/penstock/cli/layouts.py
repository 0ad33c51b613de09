"""Text that grows, as rows of a terminal: words are kept whole, and Markdown is laid out.

A layout is asked for its rows after every piece of text. It gives those that will never change once, and those of what
is still growing every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text

from penstock.cli.status_line import cells_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, RenderableType


class Row(NamedTuple):
    """One row: what is written, steering sequences included, and how many columns it takes."""

    text: str
    cells: int


class Rows(NamedTuple):
    """What a layout gives."""

    finished: list[Row]
    """Those that have become final since the last time."""
    growing: list[Row]
    steady: bool = True
    """Whether the growing rows stay as they are, but for the last ones. Those of a table do not."""


class Layout(Protocol):
    """Lays text out."""

    def add(self, text: str) -> None:
        """More text; nothing in it steers a terminal, but for line breaks and tabs."""

    def rows(self, columns: int, ended: bool = False) -> Rows:
        """The rows, on a terminal of so many columns; `ended`: no more text comes, so all of them are final."""


class WordLayout:
    """Text as it stands, which breaks between words."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""
        self._finished: list[str] = []

    def add(self, text: str) -> None:
        *lines, rest = text.split("\n")
        if lines:
            self._finished += [self._line + lines[0], *lines[1:]]
            self._line = ""
        self._line += rest

    def rows(self, columns: int, ended: bool = False) -> Rows:
        growing = self._wrapped([self._line], columns)
        finished = self._wrapped(self._finished, columns)
        self._finished = []
        if not ended:
            return Rows(finished, growing)
        self._line = ""
        return Rows(finished + growing, [])

    def _wrapped(self, lines: Sequence[str], columns: int) -> list[Row]:
        return [row for line in lines for row in rows_of(self._console, Text(line, overflow="fold"), columns)]


def rows_of(console: Console, what: RenderableType, columns: int) -> list[Row]:
    """What rich makes of something, without blanks at the ends of rows.

    The last column stays free, and as many more as terminals may differ by on the characters of a row: none may wrap.
    """
    width = columns - 1
    rows = _rendered(console, what, width)
    while width > 2 and any(sum(_width(row)) > columns for row in rows):
        width -= 1
        rows = _rendered(console, what, width)
    return [Row(_written(console, row), _width(row)[0]) for row in rows]


def _rendered(console: Console, what: RenderableType, width: int) -> list[list[Segment]]:
    lines = console.render_lines(what, console.options.update(width=max(1, width)), pad=False)
    return [_without_end_blanks(line) for line in lines]


def _without_end_blanks(line: Iterable[Segment]) -> list[Segment]:
    segments = list(line)
    while segments and not segments[-1].text.rstrip():
        segments.pop()
    if segments:
        segments[-1] = Segment(segments[-1].text.rstrip(), segments[-1].style)
    return segments


def _width(row: Iterable[Segment]) -> tuple[int, int]:
    """Columns of a row, and by how many terminals may differ."""
    text = "".join(segment.text for segment in row)
    return cell_len(text), sum(cells_of(character)[1] for character in text)


def _written(console: Console, row: Iterable[Segment]) -> str:
    if console.no_color:
        row = Segment.remove_color(row)
    return "".join(
        segment.style.render(segment.text, color_system=console._color_system) if segment.style else segment.text
        for segment in row
    )
