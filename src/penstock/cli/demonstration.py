"""What `penstock demo` shows: offline, on this very machine."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.syntax import Syntax
from rich.table import Table

from penstock.checkpoints.store import DEMO, find_model
from penstock.cli.stats import layer_table
from penstock.cli.whole_lines import tell
from penstock.compute.kernels import Kernels
from penstock.demo import layers as demo_layers
from penstock.demo import steps
from penstock.demo import timing as demo_timing
from penstock.errors import MemoryCeilingError, PenstockError
from penstock.stages.probe import measure_compute
from penstock.system import machine

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from penstock.completion import Piece
    from penstock.demo.timing import Timing, Timings, Tokens

TABLE_LINES = 17
SIDE_BY_SIDE = 120
"""Columns from which code and table stand beside each other."""
LITTLE_BYTES = 2 << 30
"""Memory to forecast for besides, where the 8B fits in what is free."""


def demonstrate() -> None:
    """All of it. Ends the process with 1 where bits differ, or damage is not noticed."""
    console = Console(highlight=False)
    with steps.packed_copy() as packed:
        compare_bits(console, packed)
        console.print()
        find_damage(console, packed)
    console.print()
    _extrapolate(console)


def compare_bits(console: Console, packed: Path) -> None:
    """Complete a text from disk, and check that memory, a packed copy and guesses give the same bits."""
    console.print(
        "[bold]1.[/] A small model (6.6 million weights) goes on writing code. For every token it reads four fifths of "
        "its weights from the disk again, as a model larger than the memory has to.\n"
    )
    path = find_model(DEMO)
    streamed = _show_streamed(console, path)
    ratio = steps.weight_file_bytes(packed) / steps.weight_file_bytes(path)
    with console.status("the same from memory, from the packed copy, and with guesses"):
        resident = steps.complete(path, steps.RESIDENT)
        from_packed = steps.complete(packed, steps.STREAMED)
        guessed = steps.complete(packed, steps.GUESSING, guesses=True)
    runs = {"streamed": streamed, "in memory": resident, "packed": from_packed, "guessing": guessed}
    for name, run in runs.items():
        _summarise(console, name, run)
    if not all(streamed.same_bits(run) for run in runs.values()):
        _defect(console, "different")
    console.print(
        f"[bold green]identical[/]: every token, and every bit of all {streamed.logits.size:,} logits. Packed, the "
        f"weights take {ratio:.3f} of the bytes; guesses, which their coarse bits make and a pass checks many of, "
        f"brought {guessed.pieces[-1].stats.tokens_per_pass:.1f} tokens a pass."
    )


def find_damage(console: Console, packed: Path) -> None:
    """Flip a bit of the packed copy, and show that it is refused."""
    flipped = steps.flip_a_bit(packed, Random())
    console.print(
        f"[bold]2.[/] In the packed copy one bit is flipped, at random: bit {flipped.bit} of byte {flipped.offset:,} "
        f"of {flipped.file.name}, in the {flipped.tier} tier of {flipped.tensor}. It is run again:\n"
    )
    error = steps.refusal(packed)
    if error is None:
        _defect(console, "not noticed")
    console.print(f"error: {error}", markup=False, soft_wrap=True)
    console.print("\n[bold green]refused[/]: not a single token came of it.")


def _defect(console: Console, what: str) -> NoReturn:
    console.print(f"[bold red]{what}[/]: this is a defect, please report it.")
    raise typer.Exit(1)


def _extrapolate(console: Console) -> None:
    """Time layers of the true size; a machine without the room for them misses only this."""
    console.print(
        "[bold]3.[/] Layers of the true size of Llama-3.1-8B, random weights: made on this disk, packed, timed, and "
        "deleted.\n"
    )
    try:
        timings = _time_layers(console)
    except PenstockError as error:
        tell(console, f"Left out: {escape(error.problem)} {escape(error.remedy)}")
        return
    for name, timing in (
        ("a file a layer, loaded, then run:", timings.loaded),
        ("the same bytes, streamed:", timings.streamed),
        ("the same weights, packed:", timings.packed),
    ):
        console.print(f"{name:<33} {timing.seconds:.2f} s a layer, {_rate(timing)}")
    console.print(_forecast_line(timings))


def _time_layers(console: Console) -> Timings:
    folder, config = demo_layers.find_room(), demo_layers.layers_config()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(doing: str, done: int, total: int) -> None:
            progress.update(task, description=doing, completed=done, total=total)

        with demo_layers.made_layers(folder, config, tell) as layers:
            progress.stop()
            with console.status("timing them"):
                return demo_timing.time_all(layers)


def _forecast_line(timings: Timings) -> str:
    """What the whole 8B would take in the memory that this machine has free, and in little."""
    compute, free = measure_compute(Kernels()), machine.available_bytes()
    begin = f"Your disk: {_rate(timings.streamed)}; {free / 2**30:.1f} GiB free: the 8B would"
    try:
        now = demo_timing.forecast(timings, free + machine.footprint().anonymous, compute)
        if now.packed.bytes_read:
            return f"{begin} take {_token(now)} (extrapolated)."
        little = demo_timing.forecast(timings, LITTLE_BYTES, compute)
    except MemoryCeilingError:
        return f"{begin} need more memory than that."
    fits = "fit in packed" if now.raw.bytes_read else "fit in"
    return f"{begin} {fits} and take {_token(now)}, or, in {LITTLE_BYTES >> 30} GiB, {_token(little)} (extrapolated)."


def _token(tokens: Tokens) -> str:
    return f"[bold]{_seconds(tokens.packed.seconds)} a token packed[/], {_seconds(tokens.raw.seconds)} raw"


def _show_streamed(console: Console, path: Path) -> steps.Run:
    """The streamed run, with its text and the layers of its latest pass as they come."""
    text = steps.PROMPT
    with Live(console=console, refresh_per_second=12, transient=True) as live:

        def on_piece(piece: Piece) -> None:
            nonlocal text
            text += piece.text
            table = layer_table(piece.stats.parts, f"pass {piece.stats.passes}")
            live.update(_beside(console, text, table))

        run = steps.complete(path, steps.STREAMED, on_piece)
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
        f"{name + ':':<10} {stats.tokens} tokens in {stats.passes} passes and {stats.seconds:.2f} s, the first after "
        f"{stats.first_token_seconds * 1e3:.0f} ms; {stats.bytes_read / 1e6:.0f} MB read"
    )


def _rate(timing: Timing) -> str:
    rate = timing.bytes_per_second
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
