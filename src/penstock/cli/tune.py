"""`penstock tune`: what makes a packed model's own coarse weights guess better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as opt
from penstock.cli.units import format_seconds, format_size
from penstock.errors import UsageError


def tune(
    model: opt.Model,
    text: Annotated[
        Path | None,
        typer.Option(help="A text like those that the model is for. (default: one that comes with Penstock)"),
    ] = None,
    memory: opt.Memory = None,
    threads: opt.Threads = None,
) -> None:
    """Teach a packed model's coarse weights to guess better, by one pass over a text; it changes no token."""
    from penstock.checkpoints.store import find_model
    from penstock.tuning.tune import tune as tune_model

    tuned = tune_model(find_model(model), _read(text), memory, threads)
    size = f"{format_size(tuned.nbytes)}, {tuned.bits:.2f} bits a weight"
    print(f"{tuned.path}: {size}, from {tuned.tokens} tokens, {format_seconds(tuned.seconds)}")


def _read(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a text: {error}", "Give a file of UTF-8 text.") from error
