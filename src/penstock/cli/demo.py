"""`penstock demo`: offline, on this very machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from penstock import demo as steps
from penstock.cli.stats import layer_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from penstock.completion import Piece

TABLE_LINES = 17
SIDE_BY_SIDE = 120
"""Columns from which code and table stand beside each other."""


def demo() -> None:
    """See it work: a small model streamed from disk, beside the same model in memory."""
    console = Console(highlight=False)
    console.print(
        "[bold]1.[/] A small model (6.6 million weights) goes on writing code. For every token it reads four fifths of "
        "its weights from the disk again, as a model larger than the memory has to.\n"
    )
    streamed = _show_streamed(console)
    _summarise(console, "streamed", streamed)
    resident = steps.complete(steps.RESIDENT, lambda piece: None)
    _summarise(console, "in memory", resident)
    if not streamed.same_bits(resident):
        console.print("[bold red]different[/]: this is a defect, please report it.")
        raise typer.Exit(1)
    console.print(f"[bold green]identical[/]: every token, and every bit of all {streamed.logits.size:,} logits.")


def _show_streamed(console: Console) -> steps.Run:
    """The streamed run, with its text and the layers of its latest pass as they come."""
    text = steps.PROMPT
    with Live(console=console, refresh_per_second=12, transient=True) as live:

        def on_piece(piece: Piece) -> None:
            nonlocal text
            text += piece.text
            table = layer_table(piece.stats.parts, f"pass {piece.stats.passes}")
            live.update(_beside(console, text, table))

        run = steps.complete(steps.STREAMED, on_piece)
    console.print(_code(text), layer_table(run.pieces[-1].stats.parts, "the last pass"), "")
    return run


def _beside(console: Console, text: str, table: Table) -> RenderableType:
    """Code and table, beside each other or above, cut to what the terminal can show."""
    if console.width >= SIDE_BY_SIDE:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(_code(text, console.height - 4), table)
        return grid
    return Group(_code(text, max(3, console.height - TABLE_LINES - 5)), table)


def _code(text: str, lines: int | None = None) -> Panel:
    """The last lines of the code."""
    shown = "\n".join(text.split("\n")[-lines:]) if lines else text
    code = Syntax(shown, "python", background_color="default")
    return Panel(code, title="streamed from disk", title_align="left", width=76)


def _summarise(console: Console, name: str, run: steps.Run) -> None:
    stats = run.pieces[-1].stats
    console.print(
        f"{name + ':':<10} {stats.tokens} tokens in {stats.seconds:.2f} s, the first after "
        f"{stats.first_token_seconds * 1e3:.0f} ms; {stats.bytes_read / 1e6:.0f} MB read"
    )
