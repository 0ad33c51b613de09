"""`penstock demo`: offline, on this very machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax

from penstock import demo as steps
from penstock.cli.stats import layer_table

if TYPE_CHECKING:
    from penstock.completion import Piece


def demo() -> None:
    """See it work: a small model streamed from disk, beside the same model in memory."""
    console = Console(highlight=False)
    console.print(
        "[bold]1.[/] A model of 6.6 million weights goes on writing this code. Four fifths of its weights are"
    )
    console.print("   read from the disk again for every token, as those of a model larger than the memory would be.\n")
    streamed = _show_streamed(console)
    stats = streamed.pieces[-1].stats
    console.print(
        f"   streamed: {stats.tokens} tokens, {stats.bytes_read / 1e6:.0f} MB read, first token after "
        f"{stats.first_token_seconds * 1e3:.0f} ms, all in {stats.seconds:.2f} s"
    )
    resident = steps.complete(steps.RESIDENT, lambda piece: None)
    stats = resident.pieces[-1].stats
    console.print(
        f"   in memory: {stats.tokens} tokens, {stats.bytes_read / 1e6:.0f} MB read, all in {stats.seconds:.2f} s"
    )
    if not streamed.same_bits(resident):
        console.print("   [bold red]different[/]: this is a defect, please report it.")
        raise typer.Exit(1)
    console.print(f"   [bold green]identical[/]: every token, and every bit of all {streamed.logits.size:,} logits.")


def _show_streamed(console: Console) -> steps.Run:
    """The streamed run, with its text and the layers of its latest pass as they come."""
    text = steps.PROMPT

    def view(piece: Piece | None = None) -> Group:
        code = Panel(Syntax(text, "python", background_color="default", word_wrap=True), title="streamed from disk")
        return Group(code, layer_table(piece.stats.log[-1].parts, f"pass {piece.stats.passes}") if piece else "")

    with Live(view(), console=console, refresh_per_second=12) as live:

        def on_piece(piece: Piece) -> None:
            nonlocal text
            text += piece.text
            live.update(view(piece))

        return steps.complete(steps.STREAMED, on_piece)
