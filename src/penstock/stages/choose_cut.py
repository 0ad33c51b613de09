"""The quickest of all cuts: which machines take part, how many layers each has, and whether they are dealt out.

What a machine adds to a pass follows from how many layers it has, if all are as large as the largest, and its turns
come at equal distances. So the best numbers are found exactly: of all that keep every disk's time below a limit, those
whose turns take least together, by dynamic programming over machines; and of all limits the best one, by bisection,
since a higher one allows more. A machine may have none. What is found is forecast as it is (cut.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import MemoryCeilingError
from penstock.models.stage import Share
from penstock.stages.cut import Cut, How, forecast_cut, forecast_stage
from penstock.weights.sizes import StoredSize

if TYPE_CHECKING:
    import numpy.typing as npt

    from penstock.stages.cut import ModelParts, Network, Node

    F64 = npt.NDArray[np.float64]

AS_QUICK = 1 + 1e-9
"""Seconds that differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class _Costs:
    """By machine and number of layers, float64 [machines, 1 + layers]; infinite where that does not fit."""

    turns: F64
    """Seconds of its turns, with hops."""
    reading: F64
    """Seconds of its disk."""
    full: F64
    """Which part of its ceiling is used."""


def choose_cut(
    parts: ModelParts, nodes: Sequence[Node], network: Network, wanted: How | tuple[Share | None, ...] | None = None
) -> Cut:
    """The quickest cut, or of those that are `wanted`: in runs, dealt, or just this one (parse_cut). Where machines
    have some layers alone, and nothing is wanted, these do them, and the first machine all others.

    Of cuts that are as quick, the one that leaves the fullest machine the most room. Raises MemoryCeilingError.
    """
    if wanted is None and any(node.layers is not None for node in nodes):
        wanted = _as_held(nodes, len(parts.layers))
    if isinstance(wanted, tuple):
        return forecast_cut(parts, nodes, wanted, network)
    forecast_cut(parts, nodes[:1], [Share((0,))], network)  # where this raises, it says what is missing
    ways: tuple[How, ...] = ("runs", "dealt") if wanted is None else (wanted,)
    found = [cut for how in ways if (cut := _best_cut(parts, nodes, network, how))]
    if not found:
        raise MemoryCeilingError(
            f"The keys and values of {parts.positions} positions do not fit on these machines.",
            "Raise their ceilings, take more machines, or lower --context.",
        )
    return min(found, key=lambda cut: cut.seconds)


def _as_held(nodes: Sequence[Node], layers: int) -> tuple[Share | None, ...]:
    """Each layer but the first goes to the first of the others that has a share with it, the rest to this machine."""
    left = {*range(layers)}
    shares: list[Share | None] = []
    for node in nodes[1:]:
        own = sorted({*(node.layers or ())} & left - {0})
        left -= {*own}
        shares.append(Share(tuple(own), embedding=False, head=False) if own else None)
    return Share(tuple(sorted(left))), *shares


def _best_cut(parts: ModelParts, nodes: Sequence[Node], network: Network, how: How) -> Cut | None:
    """None where nothing fits."""
    costs, layers = _costs(parts, nodes, network, how), len(parts.layers)
    best = _quickest(costs.turns, costs.reading)
    if best is None:
        return None
    caps = np.unique(costs.full[np.isfinite(costs.turns)])

    def within(cap: float) -> tuple[float, list[int]] | None:
        return _quickest(np.where(costs.full <= cap, costs.turns, np.inf), costs.reading)

    def enough(cap: float) -> bool:
        found = within(cap)
        return found is not None and found[0] <= best[0] * AS_QUICK

    roomiest = within(caps[bisect_left(caps, True, key=enough)])
    _, counts = roomiest or best
    owners = _in_runs(counts) if how == "runs" else _spread(counts)
    shares = _shares(owners, len(nodes), layers)
    return forecast_cut(parts, nodes, shares, network, how)


def _costs(parts: ModelParts, nodes: Sequence[Node], network: Network, how: How) -> _Costs:
    largest = max(parts.layers, key=lambda size: (size.nbytes, size.indexed))
    rows: dict[tuple[Node, bool], F64] = {}
    for place, node in enumerate(nodes):
        kind = replace(node, name=""), place == 0
        if kind not in rows:
            rows[kind] = _costs_of(parts, node, place == 0, network, how, largest)
    table = np.stack([rows[replace(node, name=""), place == 0] for place, node in enumerate(nodes)])
    return _Costs(table[:, 0], table[:, 1], table[:, 2])


def _costs_of(parts: ModelParts, node: Node, first: bool, network: Network, how: How, largest: StoredSize) -> F64:
    """float64 [turns, reading, full][1 + layers] of one machine. The first one has a layer at least."""
    layers = len(parts.layers)
    out = np.full((3, 1 + layers), np.inf)
    if not first:
        out[:, 0] = 0
    size: StoredSize | None = None
    for count in range(1, layers + 1):
        size = largest if size is None else size + largest
        share = Share(tuple(range(count)), embedding=first, head=first)
        turns = 1 if how == "runs" else min(count, max(1, layers - count))
        try:
            stage = forecast_stage(parts, node, share, size, 0.0 if turns == 1 else 1 - count / layers)
        except MemoryCeilingError:
            break  # nor do more
        one, last = stage.work(1 / turns, False), stage.work(1 / turns, first)
        seconds = (turns - 1) * one.seconds(stage.ahead) + last.seconds(stage.ahead)
        if not first:
            seconds += turns * network.seconds(parts.row_bytes)
        out[:, count] = seconds, stage.disk_seconds, stage.full
    return out


def _quickest(turns: F64, reading: F64) -> tuple[float, list[int]] | None:
    """The least seconds of a pass, and how many layers each machine has then; None where nothing fits."""
    limits = np.unique(reading[np.isfinite(turns)])

    def most_of(limit: float) -> tuple[float, list[int]]:
        seconds, counts = _least_sum(np.where(reading <= limit, turns, np.inf))
        return max(seconds, limit), counts

    at = bisect_left(limits, True, key=lambda limit: most_of(limit)[0] <= limit)
    found = [most_of(limit) for limit in limits[max(0, at - 1) : at + 1]]
    seconds, counts = min(found, key=lambda one: one[0], default=(np.inf, []))
    return (seconds, counts) if np.isfinite(seconds) else None


def _least_sum(seconds: F64) -> tuple[float, list[int]]:
    """The least sum of one of each row of float64 [machines, 1 + layers], of which the columns add up to `layers`, and
    these columns; infinite where there is none."""
    layers = seconds.shape[1] - 1
    before = np.arange(layers + 1)[:, None] - np.arange(layers + 1)[None, :]  # layers that others have
    best = np.where(np.arange(layers + 1) == 0, 0.0, np.inf)
    chosen = []
    for row in seconds:
        sums = np.where(before >= 0, best[before], np.inf) + row
        chosen.append(sums.argmin(axis=1))
        best = sums.min(axis=1)
    counts, left = [], layers
    for column in reversed(chosen):
        counts.append(int(column[left]))
        left -= counts[-1]
    return float(best[-1]), counts[::-1]


def _in_runs(counts: Sequence[int]) -> list[int]:
    """Whose each layer is, in the order of the machines."""
    return [place for place, count in enumerate(counts) for _ in range(count)]


def _spread(counts: Sequence[int]) -> list[int]:
    """Whose each layer is, those of each machine spread evenly; the first layer is the first machine's."""
    taking_part = [place for place, count in enumerate(counts) if count]
    phases = {place: phase / len(taking_part) for phase, place in enumerate(taking_part)}
    places = [((k + phases[place]) / counts[place], place) for place in taking_part for k in range(counts[place])]
    return [place for _, place in sorted(places)]


def _shares(owners: Sequence[int], nodes: int, layers: int) -> list[Share | None]:
    held = [tuple(layer for layer in range(layers) if owners[layer] == place) for place in range(nodes)]
    return [Share(own, embedding=not place, head=not place) if own else None for place, own in enumerate(held)]
