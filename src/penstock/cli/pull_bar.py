"""A pull in a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.hub.pull import PullWatcher
from penstock.hub.pull_state import PullState

if TYPE_CHECKING:
    from rich.progress import Progress

_JUMP = 64 << 20


class PullBar(PullWatcher):
    """Shows it in a bar, that of this process or, with `show`, another one."""

    def __init__(self, bar: Progress, whose: str = "") -> None:
        """`whose`: what begins each line."""
        self._bar = bar
        self._whose = whose
        self._state = PullState()
        self._task = bar.add_task(f"{whose}{self._state.words}", total=None)
        self._done = 0
        self._noticed = 0

    def file(self, name: str, number: int, count: int) -> None:
        self._state.file(name, number, count)
        self.show(self._state)

    def progress(self, done: int, total: int) -> None:
        self._state.progress(done, total)
        self.show(self._state)

    def checking(self, name: str) -> None:
        self._state.checking(name)
        self.show(self._state)

    def notice(self, text: str) -> None:
        self._state.notice(text)
        self.show(self._state)

    def show(self, state: PullState) -> None:
        """How far a pull is."""
        if state.done - self._done > _JUMP:  # an earlier call's work, which says nothing about the speed
            self._bar.reset(self._task, total=state.total, completed=state.done)
        self._bar.update(self._task, description=f"{self._whose}{state.words}", total=state.total, completed=state.done)
        self._done = state.done
        for text in state.notices[self._noticed :]:
            self._bar.console.print(f"{self._whose}{text}", markup=False, soft_wrap=True)
        self._noticed = len(state.notices)
