"""A line of status below text that grows, on a terminal.

The text is the terminal's own: it wraps, scrolls and is copied as if nothing stood below it. The line is drawn in the
row below the text's end, and wiped before more text comes. The cursor goes there and back relative to where it stands,
so it matters little where the terminal has wrapped the text, save for one case: behind a character in the last column
the cursor is on its way to the next row, and would not be put back there. Then it is moved on to that row first. Where
it cannot be told whether that is so, which takes characters of disputed width near an edge, nothing is drawn.

Source: ECMA-48 and the VT100 User Guide, by way of "XTerm Control Sequences".
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_WIPE = "\x1b[J"  # all that follows the cursor: below the text there is nothing but the line
_ROW_BELOW = "\x1bD\x1b[A"  # down, scrolling where there is no row left, and up again to the same column
_SAVE, _DOWN, _RESTORE = "\x1b7", "\x1b[B\r", "\x1b8"
_DIM, _NOT_DIM = "\x1b[2m", "\x1b[0m"
_LEAST_ROWS = 3
_TAB = 8

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\ufffd") | {ord(c): c for c in "\n\t"} | {ord("\r"): ""}
_DISPUTED = {"Mc", "Cf", "Cn", "Co", "Zl", "Zp"}
"""Categories: spacing marks, joiners and the like, characters newer than this Python, private ones, separators."""
_SEQUENCES = {*"\ufe0e\ufe0f", *map(chr, range(0x1F1E6, 0x1F200)), *map(chr, range(0x1F3FB, 0x1F400))}
"""Variation selectors, letters of flags, skin tones: they make one emoji of several characters, or do not."""


def visible(text: str) -> str:
    """The text with nothing in it that steers a terminal, but for line breaks and tabs."""
    return text.translate(_CONTROLS)


def dim(text: str) -> str:
    """The text, dimmed where colours are wanted."""
    return text if not text or os.environ.get("NO_COLOR") else f"{_DIM}{text}{_NOT_DIM}"


class StatusLine:
    """Text, and a line below it."""

    def __init__(self, out: TextIO, size: Callable[[], os.terminal_size] | None = None) -> None:
        """On the terminal `out`; its size may change, so `size` is asked every time."""
        self._out = out
        self._size = size or (lambda: os.get_terminal_size(out.fileno()))
        self._end = TextEnd()
        self._drawn = False
        self.status = ""
        """What the next drawing shows, of ASCII; an empty one leaves the screen to the text."""

    @property
    def room(self) -> int:
        """Characters that the line has room for; the last column stays free, so that nothing wraps."""
        return self._size().columns - 1

    def write(self, text: str) -> None:
        """More text, behind what is there; the line stays below it."""
        text = visible(text)
        if text:
            # Where the cursor has been moved on to a row of its own, a line break would leave that one empty.
            back = "\x1b[A" if self._end.moved_on and text.startswith("\n") else ""
            self._end.add(text, self._size().columns)
            self._put(back + text)

    def show(self, status: str) -> None:
        """Draw `status` in place of what is there."""
        self.status = status
        self._put("")

    def end(self) -> None:
        """No more text comes: leave the screen to it."""
        self.show("")
        self.write("\n")

    def _put(self, text: str) -> None:
        wipe, drawing = _WIPE if self._drawn else "", self._drawing()
        self._drawn = self._drawn or bool(drawing)  # may be interrupted
        self._out.write(wipe + text + drawing)
        self._out.flush()
        self._drawn = bool(drawing)

    def _drawing(self) -> str:
        columns, rows = self._size()
        status = self.status[: columns - 1]
        column = self._end.column(columns)
        if not status or column is None or rows < _LEAST_ROWS:
            return ""
        on = self._end.move_on() if column == columns else ""
        return f"{on}{_ROW_BELOW}{_SAVE}{_DOWN}{_WIPE}{dim(status)}{_RESTORE}"


class TextEnd:
    """The column behind a text on a terminal, as far as that can be told without asking it."""

    def __init__(self) -> None:
        self._line = ""
        """The text since the last line break."""
        self._columns = 0
        self._column = 0
        self._doubt = 0
        """By how many columns the terminal may see it differently."""
        self.moved_on = False
        """Whether the cursor is in a row that the text has not reached yet."""

    def add(self, text: str, columns: int) -> None:
        """More text, on a terminal of so many columns."""
        self._resize(columns)
        rest = text.rpartition("\n")[2]
        if len(rest) < len(text):
            self._line, self._column, self._doubt = "", 0, 0
        self._line += rest
        self._advance(rest)
        self.moved_on = self.moved_on and not text

    def column(self, columns: int) -> int | None:
        """0 to `columns`, which is behind the last one; None where it may or may not be at an edge."""
        self._resize(columns)
        at_edge = self._doubt >= min(self._column, columns - self._column)
        return None if self._doubt and at_edge else self._column

    def move_on(self) -> str:
        """What moves the cursor from behind the last column to the first one of the next row."""
        self._column, self.moved_on = 0, True
        return " \r"

    def _resize(self, columns: int) -> None:
        """Most terminals wrap the text anew, some leave it as it is."""
        if columns != self._columns:
            self._columns, self._column, self._doubt = columns, 0, min(1, len(self._line))
            self._advance(self._line)

    def _advance(self, text: str) -> None:
        for character in text:
            if character == "\t":
                self._tab()
                continue
            cells, doubt = cells_of(character)
            self._doubt += doubt
            fits = self._column + cells <= self._columns
            self._column = self._column + cells if fits else min(cells, self._columns)

    def _tab(self) -> None:
        """To the next multiple of 8, or the last column."""
        self._column = (self._column // _TAB + 1) * _TAB
        if self._column >= self._columns:
            self._column = self._columns - 1
            self._doubt += _TAB


@lru_cache(maxsize=1024)
def cells_of(character: str) -> tuple[int, int]:
    """Columns that a character takes, and by how many terminals differ. Source: Unicode Standard Annex 11."""
    if character.isascii():
        return 1, 0
    category = unicodedata.category(character)
    zero = category in ("Mn", "Me", "Cf")
    cells = 0 if zero else 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return cells, 2 if category in _DISPUTED or character in _SEQUENCES else 0
