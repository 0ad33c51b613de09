"""`penstock tune`: what makes a packed model's own coarse weights guess better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.cli import options as opt
from penstock.cli.progress import seconds_in_words
from penstock.cli.units import format_size
from penstock.errors import UsageError

Tune = Annotated[bool, typer.Option("--tune", help="Tune it, too: see `penstock tune`, which can do so later.")]


def tune(
    model: Annotated[
        str,
        typer.Argument(
            help="A packed model, no mixture of experts: its directory, or its name on this machine.",
            autocompletion=opt.complete_model,
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            help="A text like those that the model is for, of 64 tokens or more; the first 400 are used. (default: one "
            "that comes with Penstock)"
        ),
    ] = None,
    memory: opt.Memory = None,
    threads: opt.Threads = None,
) -> None:
    """Teach a packed model's coarse weights to guess better, in one pass over a text; no answer becomes another one."""
    from penstock.checkpoints.store import find_model

    tune_model(find_model(model), None if text is None else _read(text), memory, threads)


def tune_model(path: Path, text: str | None = None, memory: str | None = None, threads: int | None = None) -> None:
    """The same for the model at `path`, shown as it goes on."""
    from penstock.tuning.tune import tune as fit

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("layers"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)
    with bar:
        task = bar.add_task("tuning", total=None)
        tuned = fit(path, text, memory, threads, lambda done, total: bar.update(task, completed=done, total=total))
    size = f"{format_size(tuned.nbytes)} that make guesses better ({tuned.bits:.2f} bits a weight)"
    print(f"{tuned.path}: {size}, from {tuned.tokens} tokens, in {seconds_in_words(tuned.seconds)}")


def offer(model: str | Path, path: Path) -> None:
    """Say that a model that was packed to `path` can be tuned, unless it is a mixture of experts."""
    from penstock.checkpoints.checkpoint import open_checkpoint
    from penstock.tuning.tune import can_be_tuned

    if can_be_tuned(open_checkpoint(path).config):
        print(f"Better guesses, so faster answers, for a few minutes: penstock tune {model}")


def _read(path: Path) -> str:
    """As much of a file as is looked at."""
    from penstock.tuning.tune import MOST_CHARACTERS

    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a text: {error}", "Give a file of UTF-8 text.") from error
