"""A terminal to look at, that is as strict as the strictest real ones."""

from __future__ import annotations

import io
import os
from typing import Any

import pyte
from wcwidth import wcwidth


class Screen(pyte.HistoryScreen):
    """Like xterm, it forgets about a pending wrap whenever the cursor is moved, and erases at where it then stands."""

    def _settle(self) -> None:
        self.cursor.x = min(self.cursor.x, self.columns - 1)

    def index(self) -> None:
        super().index()
        if not self._drawing:
            self._settle()

    def cursor_up(self, count: int | None = None) -> None:
        super().cursor_up(count)
        self._settle()

    def cursor_down(self, count: int | None = None) -> None:
        super().cursor_down(count)
        self._settle()

    def save_cursor(self) -> None:
        self._settle()
        super().save_cursor()

    def erase_in_display(self, how: int = 0, *args: Any, **kwargs: Any) -> None:
        self._settle()
        super().erase_in_display(how, *args, **kwargs)

    _drawing = False

    def draw(self, data: str) -> None:
        self._drawing = True
        for character in data:
            if self.cursor.x == self.columns - 1 and wcwidth(character) == 2:
                self.cursor.x = self.columns
            super().draw(character)
        self._drawing = False


class Terminal(io.StringIO):
    """A file that shows on a screen what is written to it."""

    def __init__(self, columns: int, rows: int = 24) -> None:
        super().__init__()
        self.screen = Screen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)

    def size(self) -> os.terminal_size:
        return os.terminal_size((self.screen.columns, self.screen.lines))

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))  # as the line discipline does
        return super().write(text)

    @property
    def rows(self) -> list[str]:
        """Everything on the screen and above it, without blank rows at the end and blanks at the end of rows."""
        above = [self._row(row) for row in self.screen.history.top]
        rows = [row.rstrip() for row in (*above, *self.screen.display)]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def row_below(self) -> str:
        """The row below the cursor's."""
        return self.screen.display[self.screen.cursor.y + 1].rstrip() if self._has_row_below else ""

    @property
    def _has_row_below(self) -> bool:
        return self.screen.cursor.y + 1 < self.screen.lines

    def _row(self, cells: Any) -> str:
        characters = [cells[column].data for column in range(self.screen.columns)]
        return "".join(characters)
