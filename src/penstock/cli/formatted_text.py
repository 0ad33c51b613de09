"""Text that grows on a terminal, laid out, and a line of status below it.

Rows that are final are written once, and scroll off as any output does. Those of what is still growing are written
again where they change, as far as they are on the screen, each time within one synchronized update, so that nothing
flickers; of a block taller than the screen, those that have scrolled off stay. Only the rows of a table may all change
with every line: of one that is taller than the screen the end is shown until it is whole.

Source: ECMA-48, and "Synchronized Output" (https://gist.github.com/christianparpart/d8a62cc1ab659194337d73e399004036).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from penstock.cli.layouts import Row
from penstock.cli.status_line import dim, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from penstock.cli.layouts import Layout

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_WIPE_ROW, _WIPE_BELOW = "\x1b[K", "\x1b[J"
"""What follows the cursor. Nothing wipes from the first cell of the screen, which makes tmux keep what was there."""
_LEAST_ROWS = 3
DRAW_SECONDS = 0.05
"""Text that comes faster is drawn together."""
DRAW_SHARE = 0.1
"""Of the time, at most, that drawing takes: a long block takes longer to lay out."""


class FormattedText:
    """Text, and a line below it; the cursor stays at the text's end."""

    def __init__(self, out: TextIO, layout: Layout, size: Callable[[], os.terminal_size] | None = None) -> None:
        """On the terminal `out`; its size may change, so `size` is asked every time."""
        self._out = out
        self._layout = layout
        self._size = size or (lambda: os.get_terminal_size(out.fileno()))
        self._columns = self._size().columns
        self._drawn: list[Row] = []
        """The growing rows on the screen."""
        self._gone = 0
        """Growing rows that have scrolled off, and stay as they are."""
        self._due = 0.0
        self._waits = False
        """Whether there is text that has not been drawn."""
        self.status = ""
        """What the next drawing shows, of ASCII."""

    @property
    def room(self) -> int:
        """Characters that the line has room for; the last column stays free, so that nothing wraps."""
        return self._size().columns - 1

    def write(self, text: str) -> None:
        """More text, behind what is there."""
        self._layout.add(visible(text))
        self._waits = True
        self._draw()

    def show(self, status: str) -> None:
        """Draw `status` in place of what is there."""
        self.status = status
        self._draw()

    def end(self) -> None:
        """No more text comes: leave the screen to it."""
        self.status = ""
        self._draw(ended=True)
        self._put("\n")

    def _draw(self, ended: bool = False) -> None:
        size, begin = self._size(), time.perf_counter()
        if not (ended or size.columns != self._columns or (self._waits and begin >= self._due)):
            self._put(self._status_below(self._drawn, size))
            return
        self._waits = False
        finished, growing, steady = self._layout.rows(size.columns, ended)
        most = max(1, size.lines - 2)
        if size.columns == self._columns:
            rows = [*finished, *growing][self._gone :]
            self._gone = max(0, self._gone - len(finished))
        else:  # of what has scrolled off nobody knows where its rows end now
            rows = [*finished, *growing[-most:]]
            self._gone = max(0, len(growing) - most)
        over = max(0, len(growing) - self._gone - most)
        if over and not steady:
            rows = rows[: len(rows) - len(growing) + self._gone] + growing[-most:]
        elif over:
            self._gone += over
        seen, self._drawn = self._drawn, growing[-most:] if over else growing[self._gone :]
        same = 0 if size.columns != self._columns else _common(seen, rows)
        height = _height(seen[same:], size) if seen else 1
        self._columns = size.columns
        up = f"\x1b[{height - 1}A" if height > 1 else ""
        text = "\n".join(f"{row.text}{_WIPE_ROW}" for row in rows[same:] or [Row("", 0)])
        self._put(f"{up}\r{text}{self._status_below(rows, size)}")
        end = time.perf_counter()
        self._due = end + max(DRAW_SECONDS, (end - begin) / DRAW_SHARE)

    def _status_below(self, rows: Sequence[Row], size: os.terminal_size) -> str:
        """What draws the line below the last of these rows, and brings the cursor back to its end."""
        if size.lines < _LEAST_ROWS:
            return _WIPE_BELOW if rows else ""
        cells = rows[-1].cells if rows else 0
        right = f"\x1b[{cells}C" if cells else ""
        return f"\n\r{_WIPE_BELOW}{dim(self.status[: size.columns - 1])}\x1b[A\r{right}"

    def _put(self, text: str) -> None:
        self._out.write(f"{_BEGIN}{text}{_END}")
        self._out.flush()


def _common(seen: Sequence[Row], rows: Sequence[Row]) -> int:
    """How many rows on the screen need not be written again; the last one always is, since the cursor is there."""
    most = min(len(seen), len(rows)) - 1
    return next((index for index in range(most) if seen[index] != rows[index]), max(0, most))


def _height(rows: Sequence[Row], size: os.terminal_size) -> int:
    """Rows of the screen that these take, where the terminal has wrapped them anew after it became narrower."""
    return min(sum(max(1, -(-row.cells // size.columns)) for row in rows), size.lines)
