"""Ctrl-C at a line of one's choice."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class CtrlC:
    """Raises KeyboardInterrupt before the line number `at` that runs in `files`, and notes all lines before it."""

    def __init__(self, files: Collection[str | None], at: int | None) -> None:
        self._files = files
        self._at = at
        self.lines: list[tuple[str, int]] = []
        self.came = False

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) == self._at:
                self.came = True
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


@contextmanager
def ctrl_c(files: Collection[str | None], at: int | None) -> Iterator[CtrlC]:
    """It comes amid what runs here, which ends then; never where `at` is None."""
    tracer, before = CtrlC(files, at), sys.gettrace()
    sys.settrace(tracer.trace)
    try:
        yield tracer
    except KeyboardInterrupt:
        assert tracer.came
    finally:
        sys.settrace(before)


def each_once(lines: list[tuple[str, int]], last: bool) -> list[int]:
    """The numbers at which each line runs for the first time, or the last."""
    numbers: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, 1):
        if last or line not in numbers:
            numbers[line] = number
    return sorted(numbers.values())
