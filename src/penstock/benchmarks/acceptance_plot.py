"""A picture of what guesses bring: tokens a pass against guesses a pass, a line for each drafter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.benchmarks.plot import INK, PALE, clean, new_figure

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.benchmarks.acceptance import TextResult

LINES = {"lookup": "#2a78b5", "recycling": "#8a6fb0", "coarse": "#e8833a", "draft": "#3c9d6b", "together": INK}
DASHES = {"steps": (0, (3, 2)), "rows": (0, (1, 1.5))}


def draw_acceptance(result: TextResult, path: Path) -> None:
    """Write the picture to `path`, a panel for each temperature. Raises as check_plot does, and PenstockError."""
    temperatures = sorted({one.temperature for one in result.acceptance})
    said = f"{result.prompts} prompts of {result.prompt_tokens} tokens from {result.text}, {result.tokens} tokens each"
    figure, write = new_figure(path, (5.5 * len(temperatures), 5), "What guesses bring", said)
    panels = figure.subplots(1, len(temperatures), sharey=True, squeeze=False)[0]
    for axes, temperature in zip(panels, temperatures, strict=True):
        _draw_panel(result, axes, temperature)
    panels[0].set_ylabel("tokens a pass", color=PALE)
    panels[-1].legend(frameon=False, fontsize=9, labelcolor=INK)
    write()


def _draw_panel(result: TextResult, axes: Any, temperature: float) -> None:
    rows = [one for one in result.acceptance if one.temperature == temperature]
    nodes = sorted({one.nodes for one in rows})
    for name in dict.fromkeys(one.drafter for one in rows):
        line = sorted((one.nodes, one.tokens_per_pass) for one in rows if one.drafter == name)
        axes.plot(*zip(*line, strict=True), color=LINES.get(name, PALE), marker="o", markersize=4, label=name)
    chains = [chain for chain in result.chains if chain.temperature == temperature]
    for name, same in dict.fromkeys((chain.drafter, chain.same) for chain in chains):
        own = [chain for chain in chains if (chain.drafter, chain.same) == (name, same)]
        line = sorted((chain.nodes, chain.tokens_per_pass) for chain in own)
        style = {"linestyle": DASHES[same], "linewidth": 1, "marker": ".", "label": f"{name}, a chain, as many {same}"}
        axes.plot(*zip(*line, strict=True), color=LINES.get(name, PALE), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes, [str(count) for count in nodes])
    axes.set_ylim(bottom=1)
    axes.set_title(f"temperature {temperature:g}", fontsize=10, color=INK, loc="left")
    axes.set_xlabel("guesses a pass", color=PALE)
    clean(axes)
