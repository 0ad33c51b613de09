"""`penstock batch`: a file of requests, answered in passes that they share."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options as opt
from penstock.cli.opening import opening, opens_model
from penstock.cli.progress import seconds_in_words
from penstock.errors import PenstockError, ReadError
from penstock.options import OpenOptions, command_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.batch.elsewhere import BenchLike
    from penstock.batch.run import Summary


@opens_model(*(name for name in command_options() if name not in ("cluster", "cut")))
def batch(
    model: opt.Model,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="File of requests, a JSON object a line: with a `prompt`, `messages`, or as for OpenAI's batches.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write the results to, in the order of IN.")],
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer, where its request names no limit. (default: 1024)")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(help="Most answers that share a pass. (default: as many as memory has room for, 1024 at most)"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it holds anything but this batch, interrupted.")
    ] = False,
    options: OpenOptions = OpenOptions(),  # noqa: B008
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Have the machines of a cluster (`penstock cluster`) answer, each with the whole model: its ADDRESS, "
            "or `auto` for the one that this machine is in. (default: this machine alone)",
            metavar="ADDRESS|auto",
        ),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            help="Have the machines of --cluster answer together, each with some layers: `runs`, `dealt`, or ranges "
            "like 0-9,10-20,21-31, this machine's first. (default: each the whole model)",
            metavar="CUT",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing while it goes well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Answer a file of requests, all that fit into memory sharing each pass; goes on where it was interrupted. Exits
    with 1 where a request failed."""
    from penstock.batch.run import BatchSettings, run  # takes memory, which other commands need for weights
    from penstock.cli.batch_display import display

    counts = {"max_tokens": max_tokens, "at_once": at_once}
    chosen: dict[str, Any] = {name: value for name, value in counts.items() if value is not None}
    settings = BatchSettings(
        model=model,
        source=source,
        out=out,
        **opening(options) | {"cluster": None if cut is None else cluster, "cut": cut},
        overwrite=overwrite,
        **chosen,
    )
    try:
        with nullcontext() if quiet else display() as watcher:
            summary = run(settings, watcher, None if cut is not None or cluster is None else partial(machines, cluster))
    except (KeyboardInterrupt, ReadError):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(asdict(summary)))
    elif not quiet:
        print(in_words(summary))
    check_answered(summary)


def machines(address: str) -> Sequence[BenchLike]:
    """Those of a cluster, each to open the whole model. Raises ClusterError."""
    from penstock.batch.machines import cluster_benches

    return cluster_benches(address)


def check_answered(summary: Summary) -> None:
    """Raise PenstockError where a request was not answered: a script looks at the exit code, not at every record."""
    if summary.failed:
        count = f"{summary.failed:,} of {summary.total:,} requests failed"
        if not summary.answered:
            count = f"None of {summary.total:,} requests was answered"
        raise PenstockError(
            f"{count}{_first_error(summary.out)}",
            f'Of each, "error" in {summary.out} says why. To ask for others, give another OUT, or --overwrite.',
        )


def _first_error(out: str) -> str:
    from penstock.batch.records import first_error

    try:
        with Path(out).open("rb") as results:
            return f"; {first_error(results)}"
    except OSError:  # it was whole a moment ago, and the counts are known
        return "."


def in_words(summary: Summary) -> str:
    """The summary in a line."""
    counts = f"{summary.out}: {summary.answered:,} answered, {summary.failed:,} failed, {summary.tokens:,} tokens"
    if summary.complete_before:
        return f"{counts}; nothing was left to do"
    passes = f"{summary.passes:,} pass{'es' * (summary.passes != 1)}"
    return f"{counts}; {passes} in {seconds_in_words(summary.seconds)}, {summary.tokens_per_second:.3g} tokens/s"
