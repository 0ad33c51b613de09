"""A pull in a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.hub.pull import PullWatcher

if TYPE_CHECKING:
    from rich.progress import Progress

    from penstock.cluster.pull_state import PullState

_JUMP = 64 << 20


class PullBar(PullWatcher):
    """Shows it in a bar."""

    def __init__(self, bar: Progress, whose: str = "") -> None:
        """`whose`: what begins each line."""
        self._bar = bar
        self._whose = whose
        self._task = bar.add_task(f"{whose}asking the Hub", total=None)
        self._done = 0
        self._file = whose
        self._noticed = 0

    def file(self, name: str, number: int, count: int) -> None:
        self._file = f"{self._whose}file {number} of {count}"
        self._bar.update(self._task, description=self._file)

    def progress(self, done: int, total: int) -> None:
        if done - self._done > _JUMP:  # an earlier call's work, which says nothing about the speed
            self._bar.reset(self._task, total=total, completed=done)
        self._bar.update(self._task, description=self._file, total=total, completed=done)
        self._done = done

    def checking(self, name: str) -> None:
        self._bar.update(self._task, description=f"{self._file}, checking")

    def notice(self, text: str) -> None:
        self._bar.console.print(f"{self._whose}{text}", markup=False, soft_wrap=True)

    def show(self, state: PullState) -> None:
        """That of another machine."""
        self._file = f"{self._whose}{state.words}"
        if state.total is not None:
            self.progress(state.done, state.total)
        for text in state.notices[self._noticed :]:
            self.notice(text)
        self._noticed = len(state.notices)
