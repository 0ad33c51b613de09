"""`penstock bench`: seconds a pass and where they went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from penstock import benchmark
from penstock.benchmark import Result, Settings
from penstock.cli import options as opt
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
    settings = Settings(passes, prompt_tokens, batch, memory, threads, kv_dtype)
    if plot is not None:
        check_plot(plot)
    last = LastPass() if plot is not None else None
    progress = Console(stderr=True)
    with progress.status("opening") as status:
        result = benchmark.run(model, settings, tell=status.update, listener=last)
    if plot is not None and last is not None:
        title = f"{Path(model).name}: {'the first pass' if passes == 1 else 'a pass for one more token'}"
        draw(PassPicture.of(last.events), plot, title, result.probe_bytes_per_second)
    if as_json:
        print(json.dumps(result.as_object()))
    else:
        Console(highlight=False).print(table(result))


def table(result: Result) -> Table:
    """The result for people: what, how much, and what it means."""
    grid = Table(title=f"{result.model}, {result.threads} threads, {result.isa}", title_justify="left", box=None)
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
    passes = f", in {result.prompt_passes} passes" if result.prompt_passes > 1 else ""
    return [
        ("a pass", _seconds(result.median_seconds_per_pass), f"median of {further}" if further else "the prompt's"),
        ("waiting", _seconds(result.disk_wait_seconds), "for the disk"),
        ("computing", _seconds(result.compute_seconds), ""),
        ("tokens", f"{result.tokens_per_second:.3g} a second", f"after the first{sequences}"),
        ("first token", _seconds(result.first_token_seconds), f"after a prompt of {result.prompt_tokens}{passes}"),
        ("opening", _seconds(result.open_seconds), ""),
    ]


def _disk_rows(result: Result) -> list[Row]:
    rows = [
        ("weights", _gb(result.weight_bytes), "that a pass needs"),
        ("resident", _gb(result.resident_bytes), "of them, in memory"),
        ("streamed", _gb(result.streamed_bytes_per_pass), "read in each pass"),
        ("disk", f"{_gb(result.probe_bytes_per_second)}/s", "by itself, before the passes"),
    ]
    if result.ratio_to_disk_limit is not None:
        note = f"of the disk for what is streamed; a pass takes {result.ratio_to_disk_limit:.2f} times that"
        rows.append(("limit", _seconds(result.disk_limit_seconds), note))
    return rows


def _memory_rows(result: Result) -> list[Row]:
    ceiling = result.memory_ceiling_bytes
    return [("memory", _gb(result.peak_rss_bytes), f"at most, of {_gb(ceiling)}")]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3f} GB"
