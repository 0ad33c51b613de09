"""`penstock pull`: a model from the Hugging Face Hub, packed on the way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from penstock.cli import options as opt
from penstock.cli.progress import seconds_in_words
from penstock.cli.tune import Tune, offer, tune_model
from penstock.cli.units import format_size
from penstock.errors import PenstockError, UsageError
from penstock.hub.repository import MAIN

if TYPE_CHECKING:
    from penstock.hub.pull import PullResult


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
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Have the other machines of a cluster (`penstock cluster`) pull it too, each from the Hub itself: its "
            "ADDRESS, or `auto` for the one that this machine is in. (default: this machine alone)",
            metavar="ADDRESS|auto",
        ),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            help="Have each of the others pull only the files that its layers need: `runs`, `dealt`, or ranges like "
            "0-9,10-20,21-31, this machine's first. (default: all of them)",
            metavar="CUT",
        ),
    ] = None,
) -> None:
    """Download a model from the Hugging Face Hub and pack it on the way; goes on where it was interrupted."""
    from penstock.cli.pull_bar import PullBar
    from penstock.hub.pull import place_of
    from penstock.hub.pull import pull as pull_model

    if cut is not None and cluster is None:
        raise UsageError("There is nothing to cut a model for.", "Give --cluster too, or leave --cut out.")
    try:
        with _bar() as bar:
            result: PullResult | None
            elsewhere: dict[str, PullResult | PenstockError | None] = {}
            if cluster is None:
                watcher = PullBar(bar)
                result = pull_model(repo, out, revision=revision, token=token, threads=threads, watcher=watcher)
            else:
                result, elsewhere = _on_cluster(cluster, repo, out, revision, token, threads, cut, bar)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    path = place_of(repo, out) if result is None else result.path
    print(f"{path}: {_said(result)}")
    for machine, one in elsewhere.items():
        print(f"{machine}: {'failed' if isinstance(one, PenstockError) else _said(one)}")
    failures = [one for one in elsewhere.values() if isinstance(one, PenstockError)]
    if failures:
        raise failures[0]
    name = repo if out is None else path
    if tune:
        tune_model(path, threads=threads)
    on_cluster = "" if cluster is None else f" --cluster {cluster}"
    print(f"Run it with: penstock run {name}{on_cluster}")
    if not tune and cluster is None:
        offer(name, path)


def _on_cluster(
    address: str,
    repo: str,
    out: Path | None,
    revision: str,
    token: str | None,
    threads: int | None,
    cut: str | None,
    bar: Progress,
) -> tuple[PullResult | None, dict[str, PullResult | PenstockError | None]]:
    from penstock.cli.pull_cluster import pull_on_cluster
    from penstock.cluster.connection import require_ray

    require_ray()
    from penstock.cluster.pull_order import PullOrder

    order = PullOrder(repo, None if out is None else str(out.absolute()), revision, token, threads, None)
    return pull_on_cluster(address, order, cut, bar)


def _bar() -> Progress:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)


def _said(result: PullResult | None) -> str:
    if result is None:
        return "is there already"
    sizes = f"{format_size(result.original_bytes)} of weights, {format_size(result.packed_bytes)} packed"
    return f"{sizes}, in {seconds_in_words(result.seconds)}"
