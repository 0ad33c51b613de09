"""`penstock rm`: models that are no longer wanted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock.checkpoints.models_here import Named, find_removable, models_here, remove
from penstock.cli.running import users_of
from penstock.cli.status_line import visible
from penstock.cli.units import format_size
from penstock.errors import UsageError


def complete_removable(incomplete: str) -> list[str]:
    """The names of models that begin so and can be removed, for the shell."""
    return [named.name for named in models_here() if named.where == "store" and named.name.startswith(incomplete)]


def rm(
    model: Annotated[
        list[str],
        typer.Argument(
            help="Names of models that `pull` brought, or that were packed into Penstock's store.",
            autocompletion=complete_removable,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete models that `pull` brought, or that were packed into Penstock's store; asks before it does."""
    chosen = [find_removable(name) for name in dict.fromkeys(name.rstrip("/") for name in model)]
    for named in chosen:
        if users := users_of(named.path):
            raise UsageError(f"{named.name} is in use by {', '.join(users)}.", "Stop that first.")
    if not yes and not _agreed(chosen):
        raise typer.Exit(1)
    for named in chosen:
        freed = "only a link to it was here" if named.path.is_symlink() else f"{format_size(named.nbytes)} freed"
        remove(named)
        print(f"{visible(named.name)} is gone: {freed}")


def _agreed(chosen: list[Named]) -> bool:
    """Whether the user wants it. Raises UsageError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError("Nobody is there to be asked whether to delete.", "Give --yes to delete without asking.")
    for named in chosen:
        print(f"{visible(named.name)}: {format_size(named.nbytes)} in {visible(str(named.path))}")
    try:
        answer = input(f"Delete {'it' if len(chosen) == 1 else f'these {len(chosen)}'}? [y/N] ")
    except EOFError:  # Ctrl-D
        print()
        return False
    return answer.strip().lower() in ("y", "yes")
