"""`penstock pack`: a checkpoint of this machine, a third smaller, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options as opt
from penstock.cli.byte_bar import byte_bar
from penstock.cli.tune import Tune, offer, tune_model
from penstock.cli.units import format_rate, format_seconds, format_size


def pack(
    src: Annotated[Path, typer.Argument(help="A checkpoint's directory, as on the Hugging Face Hub, or a GGUF file.")],
    out: Annotated[Path, typer.Argument(help="Directory to write the packed model to.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Delete each original weight file once its packed copy was read and compared."),
    ] = False,
    tune: Tune = False,
    threads: opt.Threads = None,
) -> None:
    """Pack the BF16 weights of a checkpoint, losslessly; after an interruption the same command goes on."""
    from penstock.packing.pack import pack as pack_model

    with byte_bar("packing", resumes=True) as on_progress:
        result = pack_model(src, out, replace=replace, threads=threads, on_progress=on_progress)
    sizes = f"{format_size(result.original_bytes)} of weights packed into {format_size(result.packed_bytes)}"
    ratio = result.packed_bytes / result.original_bytes
    rate = format_rate(result.encoded_bytes, result.seconds)
    print(f"{out}: {sizes} ({ratio:.3f}), {format_seconds(result.seconds)}, {rate}")
    if tune:
        tune_model(out, threads=threads)
    else:
        offer(out, out)
