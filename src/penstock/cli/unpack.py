"""`penstock unpack`: the original files of a packed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as opt
from penstock.cli.byte_bar import byte_bar
from penstock.cli.units import format_rate, format_seconds, format_size


def unpack(
    packed: Annotated[str, typer.Argument(help="Directory of a packed model, or its name on this machine.")],
    out: Annotated[Path, typer.Argument(help="Directory to write the original files to.")],
    shard: Annotated[
        str | None, typer.Option(help="Only this weight file, like model-00001-of-00004.safetensors.")
    ] = None,
    threads: opt.Threads = None,
) -> None:
    """Write the original files of a packed model, byte for byte; files that are there already are compared."""
    from penstock.checkpoints.store import find_model
    from penstock.packing.unpack import unpack as unpack_model

    with byte_bar("unpacking", resumes=True) as on_progress:
        result = unpack_model(find_model(packed), out, shard=shard, threads=threads, on_progress=on_progress)
    where = result.files[0] if shard else out
    rate = format_rate(result.restored_bytes, result.seconds)
    there = "" if result.restored_bytes == result.original_bytes else ", the rest was there already"
    print(f"{where}: {format_size(result.restored_bytes)} written{there}, {format_seconds(result.seconds)}, {rate}")
