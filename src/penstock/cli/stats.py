"""Where the time went, for people (on standard error) and for programs."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from penstock.cli.tables import right
from penstock.cli.units import format_seconds, format_size
from penstock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.completion import Stats
    from penstock.llm import LLM
    from penstock.models.pass_stats import PartStats

console = Console(stderr=True, highlight=False)
SHOWN_DEPTHS = 8
SHORT, ALL = "short", "all"
"""What `--stats` may be; without a value it is the first."""


class StatsCommand(TyperCommand):
    """A command whose option `--stats` may go without a value; one that it has is written behind a "="."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = args[: args.index("--")] if "--" in args else args
        named = [f"--stats={SHORT}" if arg == "--stats" else arg for arg in options]
        return super().parse_args(ctx, named + args[len(options) :])


def check_stats(wanted: str | None) -> None:
    """Raise UsageError for anything that `--stats` cannot be."""
    if wanted not in (None, SHORT, ALL):
        raise UsageError(f"--stats={wanted} is not known.", f"Give --stats, or --stats={ALL}.")


def stats_object(llm: LLM, stats: Stats, layers: bool = False) -> dict[str, Any]:
    """What `--json` says of a completion's costs, seconds and bytes; with `layers`, of every part of the last pass."""
    from penstock.benchmarks.figures import experts_figures, process_figures, weight_figures

    log = stats.log
    names = ("wait_seconds", "compute_seconds", "network_seconds")
    wait, compute, network = (sum(getattr(totals, name) for totals in log) for name in names)
    of_one_row = [totals.compute_seconds for totals in log if totals.rows == 1]
    told: dict[str, Any] = {
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "tokens": stats.tokens,
        "passes": stats.passes,
        "tokens_per_pass": stats.tokens_per_pass,
        "seconds": stats.seconds,
        "first_token_seconds": stats.first_token_seconds,
        "seconds_per_token": (stats.seconds - stats.first_token_seconds) / max(1, stats.tokens - 1),
        "bytes_read": stats.bytes_read,
        "bytes_per_second": stats.bytes_read / max(wait + compute, 1e-9),
        **weight_figures(llm, statistics.median(of_one_row) if of_one_row else None),
        "streamed_bytes_per_pass": statistics.median_low(totals.bytes_read for totals in log[1:] or log) if log else 0,
        **experts_figures(log[1:] or log),
        "read_seconds": sum(totals.read_seconds for totals in log),
        "disk_wait_seconds": wait,
        "compute_seconds": compute,
        "network_seconds": network,
        **process_figures(llm),
        "seed": stats.seed,
        "guesses": _guesses(stats) if stats.guesses.nodes else None,
    }
    if layers:
        told["parts"] = [asdict(part) for part in stats.parts]
    return told


def _guesses(stats: Stats) -> dict[str, Any]:
    """What guesses took and brought. Shares are of the passes that had guesses at a token, one of which was right."""
    record = stats.guesses
    seconds = sum(totals.seconds for totals in stats.log)
    return {
        "checked": record.nodes,
        "right": record.accepted,
        "passes": record.walks,
        "a_pass": record.nodes / record.walks,
        "right_by_depth": [record.right[depth] / n for depth, n in sorted(record.reached.items())],
        "right_by_drafter": {
            name: record.drafter_right[name] / n for name, n in sorted(record.drafter_reached.items())
        },
        "draft_seconds": stats.draft_seconds,
        "draft_share_of_time": stats.draft_seconds / max(seconds, 1e-9),
    }


def print_stats(llm: LLM, stats: Stats) -> None:
    """The whole completion in three lines: how long it took, what that went into, and what it took of memory."""
    told = stats_object(llm, stats)
    streamed = told["streamed_bytes_per_pass"]
    read = f"{format_size(streamed)} are read in each pass" if streamed else "which is all of them"
    if told["experts_per_pass"]:
        read += f"; {told['expert_hit_rate']:.0%} of the experts that were needed were in memory"
    guesses = f"; {stats.tokens_per_pass:.2f} tokens a pass" if told["guesses"] else ""
    lines = (
        f"{stats.tokens} tokens in {stats.seconds:.2f} s: first after {stats.first_token_seconds:.2f} s, then "
        f"{told['seconds_per_token']:.3f} s a token{guesses}",
        f"time: {_shares_of_time(told)}; {format_size(stats.bytes_read)} read",
        f"memory: {told['peak_rss_bytes'] / 2**30:.2f} of {told['memory_ceiling_bytes'] / 2**30:.2f} GiB allowed; "
        f"{format_size(told['resident_bytes'])} of weights stay, {read}",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def print_all_stats(llm: LLM, stats: Stats) -> None:
    """All that is known of the whole completion, but for its layers."""
    told = stats_object(llm, stats)
    resident, streamed = format_size(told["resident_bytes"]), format_size(told["streamed_bytes_per_pass"])
    lines = (
        f"{stats.prompt_tokens} tokens in, {stats.tokens} out in {stats.seconds:.2f} s: first after "
        f"{stats.first_token_seconds:.2f} s, then {told['seconds_per_token']:.3f} s a token; {stats.passes} passes, "
        f"{stats.tokens_per_pass:.2f} tokens a pass; seed {stats.seed}",
        *_guess_lines(told["guesses"], packed=told["packed_ratio"] is not None),
        *_packed_lines(told),
        *_expert_lines(told),
        f"weights: {resident} resident, {streamed} streamed a pass; "
        f"{format_size(stats.bytes_read)} read in all, {format_size(told['bytes_per_second'])}/s",
        f"time: {_shares_of_time(told)} ({llm.kernels.threads} threads, {llm.kernels.isa})",
        *_node_lines(stats.parts),
        f"memory: {told['peak_rss_bytes'] / 2**30:.2f} GiB at the peak, "
        f"{told['memory_ceiling_bytes'] / 2**30:.2f} GiB allowed",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def _shares_of_time(told: dict[str, Any]) -> str:
    """What passes went into."""
    parts = {"waiting for the disk": told["disk_wait_seconds"], "computing": told["compute_seconds"]}
    if told["network_seconds"]:
        parts["on the network"] = told["network_seconds"]
    busy = max(sum(parts.values()), 1e-9)
    return ", ".join(f"{seconds / busy:.0%} {name}" for name, seconds in parts.items())


def _node_lines(parts: Iterable[PartStats]) -> list[str]:
    """A line for each machine, of the last pass; none where there is only this one."""
    own: dict[str, list[PartStats]] = {}
    for part in parts:
        own.setdefault(part.node, []).append(part)
    return [_node_line(name or "here", of_node) for name, of_node in own.items()] if len(own) > 1 else []


def _node_line(name: str, parts: list[PartStats]) -> str:
    fields = ("wait_seconds", "compute_seconds", "network_seconds")
    waited, computed, network = (format_seconds(sum(getattr(part, field) for part in parts)) for field in fields)
    layers = sum(part.name.startswith("layer") for part in parts)
    way = "" if name == "here" else f", {network} on the way there and back"
    read = format_size(sum(part.bytes_read for part in parts))
    return f"{name}, {layers} layers, last pass: {read} read, {waited} waiting, {computed} computing{way}"


def _guess_lines(told: dict[str, Any] | None, packed: bool) -> list[str]:
    if told is None:
        return []
    raw = "" if packed else "; a raw checkpoint has no coarse weights to guess with, a packed one has"
    depths = ", ".join(f"{share:.0%}" for share in told["right_by_depth"][:SHOWN_DEPTHS])
    drafters = ", ".join(f"{name} {share:.0%}" for name, share in told["right_by_drafter"].items())
    return [
        f"guesses: {told['a_pass']:.1f} a pass, {told['right'] / told['passes']:.2f} of them right; made in "
        f"{format_seconds(told['draft_seconds'])}, {told['draft_share_of_time']:.0%} of the time",
        f"right, one token on, two, ...: {depths}; by drafter: {drafters}{raw}",
    ]


def _packed_lines(told: dict[str, Any]) -> list[str]:
    if told["packed_ratio"] is None:
        return []
    line = f"packed: {format_size(told['stored_bytes'])}, {told['packed_ratio']:.3f} of BF16"
    if told["decoded_bytes_per_second"] is not None:
        line += f"; decoded and applied at {format_size(told['decoded_bytes_per_second'])}/s of BF16"
    return [line]


def _expert_lines(told: dict[str, Any]) -> list[str]:
    """Of the passes after the first."""
    if not told["experts_per_pass"]:
        return []
    needed, read = told["experts_per_pass"], told["experts_read_per_pass"]
    hits = f"{told['expert_hit_rate']:.0%} were in memory"
    return [f"experts: {needed:.1f} needed in each pass, {read:.1f} of them read: {hits}"]


def print_layers(stats: Stats) -> None:
    """The parts of the last pass, with totals and the average layer."""
    console.print(layer_table(stats.parts, f"pass {stats.passes}, the last"))


def layer_table(parts: Iterable[PartStats], title: str) -> Table:
    """A row for each layer, then embedding, head, total and average layer; milliseconds."""
    parts = list(parts)
    layers = [part for part in parts if part.name.startswith("layer")]
    headings = ("MB read", "read ms", "wait ms", "compute ms")
    table = Table("part", *map(right, headings), title=title, title_justify="left")
    for part in layers:
        _add_row(table, part.name, [part])
    table.add_section()
    for part in parts:
        if part not in layers:
            _add_row(table, part.name, [part])
    table.add_section()
    _add_row(table, "total", parts)
    _add_row(table, "average layer", layers, len(layers))
    return table


def _add_row(table: Table, name: str, parts: list[PartStats], share: int = 1) -> None:
    """The sums over these parts, divided by `share`."""
    units = (("bytes_read", 1e6), ("read_seconds", 1e-3), ("wait_seconds", 1e-3), ("compute_seconds", 1e-3))
    sums = [sum(getattr(part, figure) for part in parts) / max(1, share) / unit for figure, unit in units]
    table.add_row(name, *(f"{each:.2f}" for each in sums))
