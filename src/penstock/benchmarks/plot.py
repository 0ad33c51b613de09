"""A picture of one pass: what the disk gave over time, when the pass waited for it, and when it computed."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from penstock.compute.kernels import F64
    from penstock.events import Event

    Span = tuple[float, float]
    """(begin, end), seconds."""

SUFFIXES = (".png", ".svg", ".pdf")
BINS = 240
READ, WAIT, COMPUTE, PROBE = "#2a78b5", "#d9d9de", "#e8833a", "#1a3d5c"
INK, PALE, BAND = "#2b2b33", "#6f6f7a", "#f3f4f7"


class LastPass:
    """A listener that keeps the events of the latest pass that has ended, and what came after it."""

    def __init__(self) -> None:
        self._ended: list[Event] = []
        self._since: list[Event] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._since.append(event)
            if event.kind == "pass":
                self._ended, self._since = self._since, []

    @property
    def events(self) -> list[Event]:
        """Reads that were under way when the pass ended came after it, but belong to the picture."""
        return self._ended + self._since


@dataclass(frozen=True, slots=True)
class PassPicture:
    """One pass in seconds since it began."""

    seconds: float
    reads: dict[int, list[tuple[float, float, int]]]
    """(begin, end, bytes) of the reads, cut to the pass, by thread."""
    waits: list[Span]
    computes: list[Span]
    """When pieces were applied; without what was waited for meanwhile."""
    parts: list[tuple[str, float, float]]

    @classmethod
    def of(cls, events: Sequence[Event]) -> PassPicture:
        """The pass that `events` tell of. Raises ValueError where they hold none."""
        whole = next((event for event in events if event.kind == "pass"), None)
        if whole is None:
            raise ValueError("there is no pass among the events")
        reads: dict[int, list[tuple[float, float, int]]] = {}
        spans: dict[str, list[Span]] = {"wait": [], "compute": []}
        parts = []
        for event in events:
            begin, end = max(event.begin, whole.begin) - whole.begin, min(event.end, whole.end) - whole.begin
            if end <= begin:
                continue
            if event.kind == "read":
                nbytes = round(event.nbytes * (end - begin) / (event.end - event.begin))
                reads.setdefault(event.thread, []).append((begin, end, nbytes))
            elif event.kind == "part":
                parts.append((event.name, begin, end))
            elif event.kind in spans:
                spans[event.kind].append((begin, end))
        waits = merged(spans["wait"])
        return cls(whole.end - whole.begin, reads, waits, without(merged(spans["compute"]), waits), parts)

    @property
    def bytes_read(self) -> int:
        """By all threads, within the pass."""
        return sum(nbytes for reads in self.reads.values() for _, _, nbytes in reads)

    @property
    def wait_seconds(self) -> float:
        """Seconds that the pass stood still for the disk."""
        return _total(self.waits)

    @property
    def compute_seconds(self) -> float:
        """Seconds that it computed."""
        return _total(self.computes)

    def rate(self, bins: int = BINS) -> F64:
        """Bytes a second in each of `bins` equal parts of the pass, float64 [bins]; a read's bytes come evenly."""
        edges = np.linspace(0, self.seconds, bins + 1)
        total = np.zeros(bins + 1)
        for reads in self.reads.values():
            for begin, end, nbytes in reads:
                total += nbytes * np.clip((edges - begin) / (end - begin), 0, 1)
        return np.asarray(np.diff(total) * bins / self.seconds)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time, ascending and without overlaps."""
    out: list[Span] = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((begin, end))
    return out


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """What is left of spans outside of holes; both are as `merged` returns them."""
    out, first = [], 0
    for begin, end in spans:
        while first < len(holes) and holes[first][1] <= begin:
            first += 1
        for hole_begin, hole_end in holes[first:]:
            if hole_begin >= end:
                break
            if hole_begin > begin:
                out.append((begin, hole_begin))
            begin = hole_end
        if begin < end:
            out.append((begin, end))
    return out


def check_plot(path: Path) -> None:
    """Tell what would keep `draw` from writing `path`, before anything is measured for it.

    Raises UsageError for a file that cannot be meant, PenstockError where matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a plot is a {', '.join(SUFFIXES)} file.", f"Name it {path.stem}.png.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}.", "Make it, or name another one.")
    if importlib.util.find_spec("matplotlib") is None:
        raise PenstockError("Plots are drawn by matplotlib, which is missing.", "Install it: pip install matplotlib")


def draw(picture: PassPicture, path: Path, title: str, summary: str, disk_rate: float) -> None:
    """Write a picture of a pass to `path`, under a line of `title` and one of `summary`; `disk_rate`: bytes a second
    that the disk gave without any compute.

    Raises as check_plot does, and PenstockError where the file cannot be written.
    """
    figure, write = new_figure(path, (12, 6), title, summary)
    rate_axes, lane_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2.2))
    _draw_parts(picture, rate_axes, lane_axes)
    _draw_rate(picture, rate_axes, disk_rate)
    _draw_lanes(picture, lane_axes)
    for axes in (rate_axes, lane_axes):
        clean(axes)
    lane_axes.set_xlim(0, picture.seconds)
    lane_axes.set_xlabel("seconds since the pass began", color=PALE)
    write()


def new_figure(path: Path, size: tuple[float, float], title: str, summary: str) -> tuple[Any, Callable[[], None]]:
    """A matplotlib figure of `size` inches with two lines at the top, and what writes it to `path` in the end.

    Raises as check_plot does; writing raises PenstockError.
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.65 / size[1])))
    figure.text(0.012, 0.975, title, va="top", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.012, 0.975 - 0.3 / size[1], summary, va="top", fontsize=10, color=PALE)

    def write() -> None:
        try:
            figure.savefig(path, dpi=160, facecolor="white")
        except OSError as error:
            problem = f"{path}: the plot cannot be written: {error.strerror or error}."
            raise PenstockError(problem, "Name a file in a directory that you may write to.") from error

    return figure, write


def _total(spans: Sequence[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def _draw_parts(picture: PassPicture, upper: Any, lower: Any) -> None:
    """Every second part as a light band, with the names of as many as there is room for."""
    for _, begin, end in picture.parts[1::2]:
        for axes in (upper, lower):
            axes.axvspan(begin, end, color=BAND, linewidth=0, zorder=0)
    style = {"transform": upper.get_xaxis_transform(), "va": "bottom", "fontsize": 8, "color": PALE}
    upper.text(-0.008 * picture.seconds, 1.015, "layer", ha="right", **style)
    room = 0.0
    for name, begin, end in picture.parts:
        label = name.removeprefix("layer ")
        width = (0.008 + 0.0065 * len(label)) * picture.seconds
        middle = (begin + end) / 2
        if middle - width / 2 >= room and middle + width / 2 <= 1.01 * picture.seconds:
            room = middle + width / 2
            upper.text(middle, 1.015, label, ha="center", **style)


def _draw_rate(picture: PassPicture, axes: Any, disk_rate: float) -> None:
    rate = picture.rate() / 1e9
    edges = np.linspace(0, picture.seconds, len(rate) + 1)
    axes.stairs(rate, edges, fill=True, color=READ, alpha=0.35, zorder=2)
    axes.stairs(rate, edges, color=READ, linewidth=1.1, zorder=3)
    axes.axhline(disk_rate / 1e9, color=PROBE, linewidth=1, linestyle=(0, (4, 3)), zorder=4)
    axes.annotate(
        f"the disk alone: {disk_rate / 1e9:.2f} GB/s",
        xy=(1, disk_rate / 1e9),
        xytext=(-4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        ha="right",
        va="bottom",
        fontsize=9,
        color=PROBE,
        zorder=5,
    )
    axes.set_ylim(0, 1.18 * max(rate.max(), disk_rate / 1e9))
    axes.set_ylabel("GB/s read", color=PALE)


def _draw_lanes(picture: PassPicture, axes: Any) -> None:
    """A lane for each thread that reads, and one where the pass computes or waits."""
    threads = sorted(picture.reads)
    height = 1 / max(1, len(threads))
    for index, thread in enumerate(threads):
        bars = [(begin, end - begin) for begin, end, _ in picture.reads[thread]]
        axes.broken_barh(bars, (1 - (index + 0.9) * height, 0.8 * height), color=READ, edgecolor="white", linewidth=0.3)
    for spans, color in ((picture.waits, WAIT), (picture.computes, COMPUTE)):
        axes.broken_barh([(begin, end - begin) for begin, end in spans], (-0.5, 0.4), color=color, linewidth=0)
    axes.set_ylim(-0.6, 1.1)
    axes.set_yticks([])
    for height, text, color in ((0.5, "reads", READ), (-0.22, "compute", COMPUTE), (-0.4, "wait", "#9a9aa4")):
        axes.text(-0.008 * picture.seconds, height, text, ha="right", va="center", fontsize=9.5, color=color)


def clean(axes: Any) -> None:
    """Axes without a frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c9c9d0")
    axes.tick_params(colors=PALE, length=0, labelsize=9)
    axes.set_axisbelow(True)
