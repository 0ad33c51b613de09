"""`penstock pull`: a model from the Hugging Face Hub, packed on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from penstock.cli import options as opt
from penstock.cli.progress import seconds_in_words
from penstock.cli.tune import Tune, offer, tune_model
from penstock.cli.units import format_size
from penstock.hub.repository import MAIN


def pull(
    repo: Annotated[str, typer.Argument(help="The model on the Hugging Face Hub, as OWNER/NAME.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write to, a new or an empty one. (default: Penstock's store)"),
    ] = None,
    revision: Annotated[str, typer.Option(help="A branch, a tag or a commit.")] = MAIN,
    token: Annotated[
        str | None,
        typer.Option(help="Of the Hub, for gated and private models. (default: HF_TOKEN, or that of `hf auth login`)"),
    ] = None,
    tune: Tune = False,
    threads: opt.Threads = None,
) -> None:
    """Download a model from the Hugging Face Hub and pack it on the way; goes on where it was interrupted."""
    from penstock.cli.pull_bar import PullBar
    from penstock.hub.pull import pull as pull_model

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)
    try:
        with bar:
            watcher = PullBar(bar)
            result = pull_model(repo, out, revision=revision, token=token, threads=threads, watcher=watcher)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    sizes = f"{format_size(result.original_bytes)} of weights, {format_size(result.packed_bytes)} packed"
    print(f"{result.path}: {sizes}, in {seconds_in_words(result.seconds)}")
    name = repo if out is None else result.path
    if tune:
        tune_model(result.path, threads=threads)
    print(f"Run it with: penstock run {name}")
    if not tune:
        offer(name, result.path)
