"""`penstock bench`: seconds a pass and where they went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penstock import benchmark
from penstock.benchmark import BenchSettings, Result
from penstock.cli import options as opt
from penstock.cli.units import format_seconds, format_size
from penstock.plot import LastPass, PassPicture, check_plot, draw


def bench(
    model: opt.Model,
    passes: Annotated[int, typer.Option(help="Passes: the prompt's, then one for each further token.")] = 5,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt, of random tokens.")] = 16,
    batch: Annotated[int, typer.Option(help="Sequences that share the passes.")] = 1,
    memory: opt.Memory = None,
    threads: opt.Threads = None,
    kv_dtype: opt.KvDtype = "bf16",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the last pass's reads and compute into this .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure seconds a pass and where they went, beside what the disk can do."""
    settings = BenchSettings(
        passes=passes, prompt_tokens=prompt_tokens, batch=batch, memory=memory, threads=threads, kv_dtype=kv_dtype
    )
    if plot is not None:
        check_plot(plot)
    last = LastPass() if plot is not None else None
    progress = Console(stderr=True)
    with progress.status("opening") as status:
        result = benchmark.run(model, settings, tell=status.update, listener=last)
    if plot is not None and last is not None:
        title = f"{Path(model).name}: {'the first pass' if passes == 1 else 'a pass for one more token'}"
        picture = PassPicture.of(last.events)
        draw(picture, plot, title, summary(picture), result.probe_bytes_per_second)
    if as_json:
        print(json.dumps(result.as_object()))
    else:
        Console(highlight=False).print(table(result))


def summary(picture: PassPicture) -> str:
    """A pass in a line."""
    nbytes = picture.bytes_read
    read = f"{format_size(nbytes)} read, {format_size(nbytes / picture.seconds)}/s" if nbytes else "no weights read"
    took, computed, waited = map(format_seconds, (picture.seconds, picture.compute_seconds, picture.wait_seconds))
    return f"{took}: {computed} computing, {waited} waiting for the disk; {read}"


def table(result: Result) -> Table:
    """The result for people: what, how much, and what it means."""
    title = f"{escape(result.model)}, {result.threads} threads, {result.isa}"
    grid = Table(title=title, title_justify="left", box=None)
    grid.add_column(style="dim")
    grid.add_column(justify="right", style="bold")
    grid.add_column()
    for row in (*_time_rows(result), *_disk_rows(result), *_memory_rows(result)):
        grid.add_row(*row)
    return grid


Row = tuple[str, str, str]


def _time_rows(result: Result) -> list[Row]:
    further = len(result.seconds_per_pass) - 1
    sequences = f" of {result.batch} sequences" if result.batch > 1 else ""
    prompt = f"after a prompt of {result.prompt_tokens}"
    if result.prompt_passes > 1:
        prompt += f", in {result.prompt_passes} passes"
    median = f"median of {further}" if further else "the prompt's"
    return [
        ("a pass", format_seconds(result.median_seconds_per_pass), median),
        ("waiting", format_seconds(result.disk_wait_seconds), "for the disk"),
        ("computing", format_seconds(result.compute_seconds), _decoding(result)),
        ("tokens", f"{result.tokens_per_second:.3g} a second", f"after the first{sequences}"),
        ("first token", format_seconds(result.first_token_seconds), prompt),
        ("opening", format_seconds(result.open_seconds), ""),
    ]


def _decoding(result: Result) -> str:
    rate = result.decoded_bytes_per_second
    return "" if rate is None else f"decoding too: {format_size(rate)}/s of BF16"


def _disk_rows(result: Result) -> list[Row]:
    ratio = f", {result.packed_ratio:.3f} of BF16" if result.packed_ratio is not None else ""
    rows = [
        ("weights", format_size(result.stored_bytes), f"that a pass needs{ratio}"),
        ("resident", format_size(result.resident_bytes), "of them, in memory"),
        ("streamed", format_size(result.streamed_bytes_per_pass), "read in each pass"),
        ("disk", f"{format_size(result.probe_bytes_per_second)}/s", "by itself, before the passes"),
    ]
    if result.ratio_to_disk_limit is not None:
        rows.append(("limit", format_seconds(result.disk_limit_seconds), "of the disk, for what is streamed"))
        rows.append(("ratio", f"{result.ratio_to_disk_limit:.2f}", "of a pass to that limit"))
    return rows


def _memory_rows(result: Result) -> list[Row]:
    ceiling = result.memory_ceiling_bytes
    return [("memory", format_size(result.peak_rss_bytes), f"at most, of {format_size(ceiling)}")]
