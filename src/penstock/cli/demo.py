"""`penstock demo`: offline, on this very machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.syntax import Syntax
from rich.table import Table

from penstock import demo as steps
from penstock import demo_layers, machine
from penstock.cli.stats import layer_table
from penstock.errors import MemoryCeilingError, PenstockError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from penstock.completion import Piece
    from penstock.demo_layers import Timing

TABLE_LINES = 17
SIDE_BY_SIDE = 120
"""Columns from which code and table stand beside each other."""
LITTLE_BYTES = 2 << 30
"""Memory to forecast for besides, where the 8B fits in what is free."""


def demo() -> None:
    """See it work: a small model streamed from disk, and what an 8B would take on this machine."""
    console = Console(highlight=False)
    _compare_bits(console)
    console.print()
    _extrapolate(console)


def _compare_bits(console: Console) -> None:
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


def _extrapolate(console: Console) -> None:
    """Time layers of the true size; a machine without the room for them misses only this."""
    console.print(
        "[bold]2.[/] Layers of the true size of Llama-3.1-8B, random weights: made on this disk, timed, and deleted.\n"
    )
    try:
        loaded, streamed = _time_layers(console)
    except PenstockError as error:
        console.print(f"Left out: {error.problem} {error.remedy}")
        return
    console.print(f"a file a layer, loaded, then run: {loaded.seconds:.2f} s a layer, {_rate(loaded)}")
    console.print(f"the same bytes, streamed:         {streamed.seconds:.2f} s a layer, {_rate(streamed)}")
    console.print(_forecast_line(streamed), soft_wrap=True)


def _time_layers(console: Console) -> tuple[Timing, Timing]:
    folder, config = demo_layers.find_room(), demo_layers.layers_config()
    columns = (TextColumn("making layers"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)
        with demo_layers.made_layers(
            folder, config, lambda done, total: progress.update(task, completed=done, total=total)
        ) as path:
            progress.stop()
            with console.status("timing them"):
                return demo_layers.time_both(path)


def _forecast_line(streamed: Timing) -> str:
    """What the whole 8B would take in the memory that this machine has free, and in little."""
    free = machine.available_bytes()
    begin = f"Your disk: {_rate(streamed)}; {free / 2**30:.1f} GiB free: the 8B would"
    try:
        now = demo_layers.forecast(streamed, free + machine.footprint().anonymous)
        if now.bytes_read:
            return f"{begin} take [bold]{_seconds(now.seconds)} a token[/] (extrapolated)."
        little = demo_layers.forecast(streamed, LITTLE_BYTES)
    except MemoryCeilingError:
        return f"{begin} need more memory than that."
    return (
        f"{begin} fit in and take {_seconds(now.seconds)} a token, or, in {LITTLE_BYTES / 2**30:.0f} GiB, "
        f"[bold]{_seconds(little.seconds)} a token[/] (extrapolated)."
    )


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


def _rate(timing: Timing) -> str:
    rate = timing.bytes_per_second
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
