"""A table of what bench/compare.py measured, and a plot of seconds a token."""

from __future__ import annotations

from pathlib import Path

from contestants import PENSTOCK
from results import Result, ratio
from rich.console import Console
from rich.table import Table

from penstock.system.sizes import MIB

COLUMNS = ("open s", "first token s", "s a token", "times Penstock", "peak MiB", "of MiB", "disk MB/s")


def show(results: list[Result], console: Console) -> None:
    """A row a run, in the order of the runs; below it, why there are gaps."""
    table = Table("", *COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for index, result in enumerate(results):
        table.add_row(result.contestant, *cells(results, index))
    console.print(table)
    for text in dict.fromkeys(f"{result.contestant}: {result.note}" for result in results if result.note):
        console.print(text, markup=False, highlight=False)


def cells(results: list[Result], index: int) -> tuple[str, ...]:
    """The numbers of one run, in the order of COLUMNS; "-" for what there is not."""
    result = results[index]
    return (
        _number(result.open_seconds, 1),
        _number(result.first_seconds),
        _number(result.median_seconds),
        _number(ratio(results, index)),
        _number(result.peak_bytes, 0, MIB),
        _number(result.memory_cap_bytes, 0, MIB),
        _number(result.disk_bytes_per_second, 0, 10**6),
    )


def _number(value: float | None, digits: int = 2, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def plot(results: list[Result], title: str, path: Path) -> None:
    """Bars of seconds a token, in the order of the runs, into an image file. Needs matplotlib (extra `plot`)."""
    from matplotlib.figure import Figure

    measured = [(result.contestant, result.median_seconds) for result in results if result.median_seconds]
    figure = Figure(figsize=(9, 0.5 * len(measured) + 1.5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds a token")
    axes.set_title(title, fontsize="medium")
    colors = ["tab:blue" if name == PENSTOCK else "tab:gray" for name, _ in measured]
    bars = axes.barh(range(len(measured)), [seconds for _, seconds in measured], color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(measured)), [name for name, _ in measured])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    figure.savefig(path, dpi=150)
