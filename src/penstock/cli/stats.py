"""Where the time went, for people (tables on standard error) and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.completion import Piece, Stats
    from penstock.stage import PartStats

console = Console(stderr=True, highlight=False)


def stats_object(stats: Stats) -> dict[str, Any]:
    """What `--json` says of a completion's costs; seconds and bytes."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "tokens": stats.tokens,
        "passes": stats.passes,
        "tokens_per_pass": stats.tokens_per_pass,
        "seconds": stats.seconds,
        "first_token_seconds": stats.first_token_seconds,
        "bytes_read": stats.bytes_read,
        "seed": stats.seed,
    }


def print_stats(pieces: list[Piece]) -> None:
    """One line about the whole completion."""
    if not pieces:
        return
    stats = pieces[-1].stats
    later = (stats.seconds - stats.first_token_seconds) / max(1, stats.tokens - 1)
    console.print(
        f"{stats.prompt_tokens} tokens in, {stats.tokens} out in {stats.seconds:.2f} s: first after "
        f"{stats.first_token_seconds:.2f} s, then {later:.3f} s a token; {stats.passes} passes, "
        f"{stats.tokens_per_pass:.2f} tokens a pass, {stats.bytes_read / 1e9:.3f} GB read; seed {stats.seed}"
    )


def print_layers(pieces: list[Piece]) -> None:
    """The parts of the last pass, with totals and the average layer."""
    if pieces:
        parts = pieces[-1].stats.parts
        console.print(layer_table(parts, f"Pass {pieces[-1].stats.passes}"))


def layer_table(parts: Iterable[PartStats], title: str) -> Table:
    """A row for each layer, then embedding, head, total and average layer; milliseconds."""
    parts = list(parts)
    layers = [part for part in parts if part.name.startswith("layer")]
    table = Table(title=title, title_justify="left")
    for heading in ("part", "MB read", "read ms", "wait ms", "compute ms"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
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
    share = max(1, share)
    table.add_row(
        name,
        f"{sum(p.bytes_read for p in parts) / share / 1e6:.2f}",
        f"{sum(p.read_seconds for p in parts) / share * 1e3:.2f}",
        f"{sum(p.wait_seconds for p in parts) / share * 1e3:.2f}",
        f"{sum(p.compute_seconds for p in parts) / share * 1e3:.2f}",
    )
