"""`penstock synth`: a checkpoint of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from penstock.cli import options as opt
from penstock.synth.shapes import shape_config, shape_names


def synth(
    out: Annotated[Path, typer.Argument(help="Directory to write the checkpoint to: a new or an empty one.")],
    shape: Annotated[str, typer.Option(help=f"Shape of the model: {shape_names()}.")] = "llama-3.1-8b",
    layers: Annotated[int | None, typer.Option(help="Only so many layers; all of them by default.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="Leave the tokenizer out.")] = False,
    threads: opt.Threads = None,
) -> None:
    """Make a checkpoint with random weights of realistic entropy, for measuring."""
    from penstock.synth.synth import synthesize

    config = shape_config(shape, layers)
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("weights", total=None)
        synthesize(
            config,
            out,
            seed=seed,
            threads=threads,
            tokenizer=not no_tokenizer,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    n_bytes = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {shape}, {n_bytes / 1e9:.2f} GB")
