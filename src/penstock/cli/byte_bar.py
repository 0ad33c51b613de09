"""How far a command is that goes through many bytes, and how it ends."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INTERRUPTED = 130


@contextmanager
def byte_bar(label: str, resumes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar with bytes, their speed and the time that is left, on a terminal; nothing elsewhere.

    Yields what is told the bytes that are done, and all of them. Ctrl-C exits with 130; `resumes`: and with a line that
    says that the same command goes on.
    """
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    except KeyboardInterrupt:
        if resumes:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
