"""`penstock verify`: whether a model is what was written, and what its original was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as opt
from penstock.cli.byte_bar import byte_bar
from penstock.cli.units import format_rate, format_seconds, format_size


def verify(
    model: opt.Model,
    against: Annotated[
        Path | None, typer.Option(help="Directory of the original checkpoint: compare every bit with it.")
    ] = None,
    threads: opt.Threads = None,
) -> None:
    """Check all checksums of a packed model; with --against, also that every tensor is the original one."""
    from penstock.checkpoints.store import find_model
    from penstock.packing.verify import verify as verify_model

    path = find_model(model)
    with byte_bar("verifying") as on_progress:
        report = verify_model(path, against, threads=threads, on_progress=on_progress)
    for place in report.damage:
        print(f"damaged: {place}")
    for place in report.differences:
        print(f"different: {place}")
    what = f"{report.n_files} file{'s' * (report.n_files != 1)}, {format_size(report.nbytes)}"
    rate = format_seconds(report.seconds)
    if report.packed or against:
        rate += f", {format_rate(report.nbytes, report.seconds)}"
    if not report.sound:
        print(f"{path}: {what}: {_count(report.damage, 'damaged')}, {_count(report.differences, 'different')} ({rate})")
        raise typer.Exit(1)
    checked = (
        "every checksum holds" if report.packed else "not packed, so there are no checksums; headers and sizes fit"
    )
    same = f"; all {report.n_tensors} tensors are those of {against}, bit for bit" if against else ""
    print(f"{path}: {what}: {checked}{same} ({rate})")


def _count(places: tuple[str, ...], kind: str) -> str:
    return f"{len(places)} {kind} place{'s' * (len(places) != 1)}"
