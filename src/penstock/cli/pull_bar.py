"""A pull in a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.hub.pull import PullWatcher

if TYPE_CHECKING:
    from rich.progress import Progress

_JUMP = 64 << 20


class PullBar(PullWatcher):
    """Shows it in a bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("asking the Hub", total=None)
        self._done = 0
        self._file = ""

    def file(self, name: str, number: int, count: int) -> None:
        self._file = f"file {number} of {count}"
        self._bar.update(self._task, description=self._file)

    def progress(self, done: int, total: int) -> None:
        if done - self._done > _JUMP:  # an earlier call's work, which says nothing about the speed
            self._bar.reset(self._task, total=total, completed=done)
        self._bar.update(self._task, description=self._file, total=total, completed=done)
        self._done = done

    def checking(self, name: str) -> None:
        self._bar.update(self._task, description=f"{self._file}, checking")

    def notice(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)
