"""`penstock ps`: the Penstock processes that run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import psutil  # type: ignore[import-untyped]
import typer
from rich.console import Console
from rich.markup import escape

from penstock.cli.progress import seconds_in_words
from penstock.cli.running import running
from penstock.cli.status_line import visible
from penstock.cli.tables import left, plain_table, right
from penstock.cli.whole_lines import tell_rows

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.cli.running import Running


def ps(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
) -> None:
    """List the Penstock processes that run: what they do with which model, and what memory they take."""
    processes = [(one, memory) for one in running() if (memory := memory_of(one.pid)) is not None]
    if as_json:
        print(json.dumps([asdict(one) | {"memory": memory} for one, memory in processes]))
    elif processes:
        tell_rows(Console(highlight=False), table(processes, time.time()))
    else:
        print("No Penstock process runs.")


def memory_of(pid: int) -> int | None:
    """Resident bytes of a process; None where it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def table(processes: list[tuple[Running, int]], now: float) -> Table:
    """A row for each process."""
    figures = right("memory"), right("ceiling"), right("port")
    grid = plain_table(right("process"), left("command"), left("model"), *figures, left("for"))
    for one, memory in processes:
        ceiling = "" if one.ceiling is None else _gib(one.ceiling)
        port = "" if one.port is None else str(one.port)
        names = (escape(visible(text)) for text in (one.command, one.model))
        grid.add_row(str(one.pid), *names, _gib(memory), ceiling, port, seconds_in_words(max(0.0, now - one.begun)))
    return grid


def _gib(nbytes: int) -> str:
    """In the unit of `--memory`."""
    return f"{nbytes / 2**30:.2f} GiB"
