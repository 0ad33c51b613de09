"""How far a batch is: a bar on a terminal, a line every now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from penstock.batch.watcher import Watcher
from penstock.cli.progress import fit, seconds_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.batch.progress import Progress as BatchProgress

LINE_SECONDS = 30.0
"""From one line to the next, where there is no terminal."""
DRAW_SECONDS = 0.1
BAR_WIDTH = 20
BAR_COLUMNS = BAR_WIDTH + 8
"""With the share that is done, and blanks between."""


@contextmanager
def display() -> Iterator[Watcher]:
    """What shows it on standard error, until the end of the block."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield LinesWatcher()
        return
    columns = (BarColumn(bar_width=BAR_WIDTH), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        yield BarWatcher(bar)


class LinesWatcher(Watcher):
    """Prints a line when the passes have begun, and whenever the last one is old."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._due = 0.0
        self._progress: BatchProgress | None = None
        self._layer, self._layers = 0, 0

    def working(self, progress: BatchProgress, layers: int) -> None:
        self._progress, self._layers = progress, layers

    def layer(self, index: int) -> None:
        self._layer = index + 1
        self._tell()

    def passed(self) -> None:
        self._layer = 0
        self._tell()

    def lost(self, name: str, reason: str) -> None:
        print(without(name, reason), file=sys.stderr, flush=True)

    def _tell(self) -> None:
        now = time.perf_counter()
        if self._progress is not None and now >= self._due:
            self._due = now + self._every
            said = items(self._progress, self._layer, self._layers)
            print(", ".join(forms[0] for forms in said), file=sys.stderr, flush=True)


class BarWatcher(Watcher):
    """Draws a bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("reading the requests", total=None)
        self._progress: BatchProgress | None = None
        self._layer, self._layers = 0, 0
        self._due = 0.0

    def scanning(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def opening(self) -> None:
        self._bar.update(self._task, completed=0, total=None, description="opening the model")

    def working(self, progress: BatchProgress, layers: int) -> None:
        self._progress, self._layers = progress, layers
        self._draw()

    def layer(self, index: int) -> None:
        self._layer = index + 1
        self._draw()

    def passed(self) -> None:
        self._layer = 0
        self._draw()

    def lost(self, name: str, reason: str) -> None:
        self._bar.console.print(without(name, reason), markup=False)

    def _draw(self) -> None:
        now = time.perf_counter()
        if self._progress is not None and now >= self._due:
            self._due = now + DRAW_SECONDS
            progress, room = self._progress, self._bar.console.width - BAR_COLUMNS
            said = fit(items(progress, self._layer, self._layers), room)
            self._bar.update(self._task, completed=progress.done, total=progress.total, description=said)


def items(progress: BatchProgress, layer: int, layers: int) -> list[tuple[str, ...]]:
    """What there is to say, the most important first, each with a shorter form; `layer`: of the pass, of so many."""
    said: list[tuple[str, ...]] = [
        (f"{progress.done:,} of {progress.total:,} done", f"{progress.done:,}/{progress.total:,}"),
        at_work(progress.nodes)
        if progress.nodes
        else (f"pass {progress.passes + 1:,}, layer {layer}/{layers}", f"layer {layer}/{layers}"),
    ]
    if (left := progress.left()) is not None:
        time_left = time_in_words(left.seconds)
        said.append((f"{'at most' if left.at_most else 'about'} {time_left} left", f"~{time_left}"))
    if progress.tokens_per_second:
        said.append((f"{progress.tokens_per_second:.3g} tokens/s",))
    if progress.failed:
        said.append((f"{progress.failed:,} failed",))
    said.append((f"{progress.tokens:,} tokens",))
    if progress.passes:
        said.append((f"{progress.pass_seconds:.3g} s a pass",))
    said.append((f"{len(progress.unfinished):,} running",))
    return said


def without(name: str, reason: str) -> str:
    """What is said of a machine that does not take part any more."""
    return f"warning: {name} does not take part any more: {reason}"


def at_work(nodes: Sequence[str]) -> tuple[str, ...]:
    """The machines that share a batch."""
    count = f"{len(nodes)} machine{'s' * (len(nodes) > 1)}"
    return (f"{count} at work ({', '.join(nodes)})", f"{count} at work", count)


def time_in_words(seconds: float) -> str:
    """An estimate, as exact as it deserves."""
    if seconds < 3600:
        return seconds_in_words(seconds)
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
