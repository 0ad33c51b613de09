"""`penstock list`: the models that have a name on this machine."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from penstock.checkpoints.models_here import models_here
from penstock.cli.status_line import visible
from penstock.cli.tables import left, plain_table, right
from penstock.cli.units import format_size
from penstock.cli.whole_lines import tell, tell_rows
from penstock.errors import CheckpointWarning, PenstockError
from penstock.hub.repository import is_repo_id

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.checkpoints.description import Description
    from penstock.checkpoints.models_here import Named

NOTHING = "No models here yet. `penstock pull OWNER/NAME` brings one; `penstock run demo` has one with it."


@dataclass(frozen=True, slots=True)
class Entry:
    """A model, and what it is, or why that cannot be told."""

    named: Named
    description: Description | None
    problem: str
    nbytes: int
    modified: float
    """When it was last written to, in seconds since 1970."""

    def as_object(self) -> dict[str, Any]:
        """What `--json` says of it."""
        told: dict[str, Any] = {
            "name": self.named.name,
            "path": str(self.named.path),
            "where": self.named.where,
            "bytes": self.nbytes,
            "modified": datetime.fromtimestamp(self.modified).astimezone().isoformat(timespec="seconds"),
            "problem": self.problem or None,
        }
        if self.description is not None:
            family, parameters = self.description.family, self.description.parameters
            told |= {"family": family, "parameters": parameters}
            told |= {"packed": self.description.form == "packed", "tuned": self.description.tuned}
        return told


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array instead of a table.")] = False,
) -> None:
    """List the models that `pull` brought, those packed into Penstock's store, and those of the Hugging Face cache."""
    entries = [entry(named) for named in models_here()]
    if as_json:
        print(json.dumps([one.as_object() for one in entries]))
    elif entries:
        console = Console(highlight=False)
        tell_rows(console, table(entries))
        tell(console, *(problem for one in entries if (problem := problem_of(one))))
    else:
        print(NOTHING)


def entry(named: Named) -> Entry:
    """What is to be told of a model; damage and models of other programs are told, not raised."""
    from penstock.checkpoints.description import describe

    try:
        nbytes, modified = named.nbytes, named.path.stat().st_mtime
    except OSError as error:  # deleted just now, or another user's
        return Entry(named, None, f"{error.filename or named.path}: {error.strerror or error}", 0, 0.0)
    if named.unfinished and not (named.path / "config.json").exists():
        again = (
            f"`penstock pull {named.name}` goes on" if is_repo_id(named.name) else "the command that wrote it goes on"
        )
        return Entry(named, None, f"unfinished; {again}", nbytes, modified)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)
            return Entry(named, describe(named.path), "", nbytes, modified)
    except PenstockError as error:
        return Entry(named, None, error.problem, nbytes, modified)


def table(entries: list[Entry]) -> Table:
    """A row for each model."""
    grid = plain_table(
        left("name"), left("family"), right("weights"), right("on disk"), left("form"), left("where"), left("changed")
    )
    for one in entries:
        when = datetime.fromtimestamp(one.modified).strftime("%Y-%m-%d %H:%M")
        family, weights, form = "", "", "see below"
        if one.description is not None:
            family, weights = one.description.family, format_count(one.description.parameters)
            form = one.description.form + ", tuned" * one.description.tuned
        name = escape(visible(one.named.name))
        grid.add_row(name, family, weights, format_size(one.nbytes), form, one.named.where, when)
    return grid


def problem_of(one: Entry) -> str:
    """Why a model cannot be told of or run, in a line of markup; empty where it can."""
    return f"[bold]{escape(visible(one.named.name))}[/]: {escape(visible(one.problem))}" if one.problem else ""


def format_count(number: int) -> str:
    """Three digits: "8.03 G", "135 M", "6.60 M"."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.{max(0, 3 - len(str(number // unit)))}f} {name}"
    return str(number)
