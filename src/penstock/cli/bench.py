"""`penstock bench`: seconds a pass and where they went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.markup import escape

from penstock.cli import options as opt
from penstock.cli.tables import left, plain_table, right
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, titled

if TYPE_CHECKING:
    from penstock.benchmarks.passes import BenchSettings, Result
    from penstock.benchmarks.plot import PassPicture


def bench(
    model: opt.Model,
    passes: Annotated[
        int | None, typer.Option(help="Passes: the prompt's, then one for each further token. (default: 5)")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Length of the prompts, of random tokens or cut from --text. (default: 16, or 200)"),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences that share the passes. (default: 1)")] = None,
    memory: opt.Memory = None,
    threads: opt.Threads = None,
    kv_dtype: opt.KvDtype = "bf16",
    adapter: opt.Adapters = None,
    cluster: opt.Cluster = None,
    cut: opt.Cut = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the last pass's reads and compute into this .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Measure guesses: with --text, --simulate or --random.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="Measure tokens a pass on this text; lines with a form feed separate its documents."),
    ] = None,
    simulate: Annotated[
        list[str] | None,
        typer.Option(
            help="Seconds a token where the first guess, the second, ... is right with these chances, like "
            "0.70,0.12,0.05, or depth by depth with semicolons between; may be given several times."
        ),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="What guessing costs on random text, where no guess is right.")
    ] = False,
    draft: opt.Draft = None,
    draft_nodes: opt.DraftNodes = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts that are cut from --text. (default: 20)")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of each run with guesses. (default: 64, or 128 with --random)")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Runs of each --simulate. (default: 4)")] = None,
) -> None:
    """Measure seconds a pass and where they went, beside what the disk can do; or, with --speculate, guesses."""
    # By name, since both kinds of measurements take some of these options and refuse the others.
    given = {name: value for name, value in locals().items() if value not in (None, []) and value is not False}

    from penstock.benchmarks.passes import BenchSettings
    from penstock.cli.bench_speculate import OF_GUESSES, bench_speculate, picked, refuse

    if speculate:
        refuse(
            given, ("passes", "batch", "adapter", "cluster", "cut"), "It measures plain passes: leave out --speculate."
        )
        return bench_speculate(model, given, as_json)
    refuse(given, OF_GUESSES, "It measures guesses: give --speculate too.")
    names = ("passes", "prompt_tokens", "batch", "memory", "threads", "kv_dtype", "cluster", "cut")
    settings = BenchSettings(**picked(given, *names), adapters=tuple(adapter or ()))
    return _bench(model, settings, plot, as_json)


def _bench(model: str, settings: BenchSettings, plot: Path | None, as_json: bool) -> None:
    from penstock.benchmarks import passes as benchmark
    from penstock.benchmarks.plot import LastPass, PassPicture, check_plot, draw

    last = None
    if plot is not None:
        check_plot(plot)
        last = LastPass()
    with Console(stderr=True).status("opening") as status:
        result = benchmark.run(model, settings, tell=status.update, listener=last)
    if plot is not None and last is not None:
        title = f"{Path(model).name}: {'the first pass' if settings.passes == 1 else 'a pass for one more token'}"
        picture = PassPicture.of(last.events)
        draw(picture, plot, title, summary(picture), result.probe_bytes_per_second)
    if as_json:
        print(json.dumps(result.as_object()))
    else:
        tell(Console(highlight=False), table(result))


def summary(picture: PassPicture) -> str:
    """A pass in a line."""
    nbytes = picture.bytes_read
    read = f"{format_size(nbytes)} read, {format_size(nbytes / picture.seconds)}/s" if nbytes else "no weights read"
    took, computed, waited = map(format_seconds, (picture.seconds, picture.compute_seconds, picture.wait_seconds))
    return f"{took}: {computed} computing, {waited} waiting for the disk; {read}"


def table(result: Result) -> Group:
    """The result for people: what, how much, and what it means."""
    title = f"{escape(result.model)}, {result.threads} threads, {result.isa}"
    grid = plain_table(left(style="dim"), right(style="bold"), left())
    for row in (*_time_rows(result), *_weight_rows(result)):
        grid.add_row(*row)
    return titled(title, grid)


def _time_rows(result: Result) -> list[tuple[str, str, str]]:
    further = len(result.seconds_per_pass) - 1
    prompt = f"after a prompt of {result.prompt_tokens}"
    prompt += f", in {result.prompt_passes} passes" if result.prompt_passes > 1 else ""
    sequences = f" of {result.batch} sequences" if result.batch > 1 else ""
    median = f"median of {further}" if further else "the prompt's"
    rate = result.decoded_bytes_per_second
    decoding = "" if rate is None else f"decoding too: {format_size(rate)}/s of BF16"
    return [
        ("a pass", format_seconds(result.median_seconds_per_pass), median),
        ("waiting", format_seconds(result.disk_wait_seconds), "for the disk"),
        ("computing", format_seconds(result.compute_seconds), decoding),
        ("tokens", f"{result.tokens_per_second:.3g} a second", f"after the first{sequences}"),
        ("first token", format_seconds(result.first_token_seconds), prompt),
        ("opening", format_seconds(result.open_seconds), ""),
    ]


def _expert_rows(result: Result) -> list[tuple[str, str, str]]:
    if result.experts_per_pass is None:
        return []
    needed = f"needed in each pass, {result.expert_hit_rate:.0%} of them in memory"
    return [("experts", f"{result.experts_per_pass:.1f}", needed)]


def _weight_rows(result: Result) -> list[tuple[str, str, str]]:
    ratio = f", {result.packed_ratio:.3f} of BF16" if result.packed_ratio is not None else ""
    limit = [
        ("limit", format_seconds(result.disk_limit_seconds), "of the disk, for what is streamed"),
        ("ratio", f"{result.ratio_to_disk_limit or 0:.2f}", "of a pass to that limit"),
    ]
    return [
        ("weights", format_size(result.stored_bytes), f"of all matrices{ratio}"),
        ("resident", format_size(result.resident_bytes), "of them, in memory"),
        ("streamed", format_size(result.streamed_bytes_per_pass), "read in each pass"),
        *_expert_rows(result),
        ("disk", f"{format_size(result.probe_bytes_per_second)}/s", "by itself, before the passes"),
        *(limit if result.ratio_to_disk_limit is not None else ()),
        ("memory", format_size(result.peak_rss_bytes), f"at most, of {format_size(result.memory_ceiling_bytes)}"),
    ]
