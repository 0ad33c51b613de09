"""Which experts to keep in memory: hit rates of several rules, on routing that is made to look as published.

    python bench/experts.py [--layers 48] [--experts 128] [--chosen 8] [--tokens 1500] [--plot FILE] [--json FILE]

No model is run. Each layer's router prefers what its topic prefers, plus noise that changes slowly from token to token;
topics change from time to time; each expert is used as often as any other in the long run, as training sees to. How
strong that is, is set so that published observations come out about right: neighbouring tokens of a Qwen share 38 % of
their experts; of 512 experts in a layer, the 64 and the 128 used last have 67 % and 81 % of those that come next; and
the 32 commonest of the first half of a text, 6 % of all, are 10 % of what the second half uses (reported in
BigMoeOnEdge, issue 101, and in llama.cpp, issue 27861).

Rules: *fading uses*, what Penstock does (`weights/experts.py`): each layer keeps those that it used most, a use
counting less with each token; *recency*, those that it used last; *one list*, likewise, for all layers together;
*frequency*, uses that fade slowly; *ranks*, the ranks by recency and by frequency added up; *fixed*, those that the
first half of the text uses most, seen in the second; *foresight*, which drops what is needed again last and cannot be
had: how much there is to gain.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penstock.weights.experts import ExpertResidency, room_for

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

SHARES = (0.02, 0.0625, 0.125, 0.25, 0.5, 0.75)
"""Of all experts, those that memory has room for."""
FADING = 0.98
"""Of a count of uses, with each token."""


@dataclass(frozen=True)
class Routing:
    """How a text goes through the experts."""

    layers: int
    experts: int
    chosen: int
    stickiness: float = 0.4
    """Of the noise: how much of it stays to the next token."""
    taste: float = 1.0
    """How far topics are apart, in deviations of the noise."""
    topics: int = 64
    stay: float = 0.99
    """How often the next token has the same topic."""

    def trace(self, tokens: int, seed: int = 0) -> I64:
        """The experts that each token goes to in each layer, [tokens, layers, chosen]."""
        rng = np.random.default_rng(seed)
        tastes = self.taste * rng.standard_normal((self.topics, self.layers, self.experts))
        tastes -= tastes.mean(axis=0)  # no expert is better liked than another over all topics
        noise = rng.standard_normal((self.layers, self.experts))
        fresh = np.sqrt(1 - self.stickiness**2)
        topic, found = 0, np.empty((tokens, self.layers, self.chosen), np.int64)
        for token in range(tokens):
            if rng.random() > self.stay:
                topic = int(rng.integers(self.topics))
            noise = self.stickiness * noise + fresh * rng.standard_normal(noise.shape)
            found[token] = np.argpartition(-(tastes[topic] + noise), self.chosen, axis=1)[:, : self.chosen]
        return np.sort(found, axis=-1)


class Rule(Protocol):
    """Which experts stay."""

    def use(self, layer: int, wanted: Sequence[int]) -> int:
        """A layer needs these: how many of them are in memory; and then some stay."""


class FadingUses:
    """As Penstock has it."""

    def __init__(self, routing: Routing, room: int) -> None:
        self._count = routing.experts
        numbers = range(routing.layers * routing.experts)
        layers = [
            [range(e, e + 1) for e in numbers[at : at + self._count]] for at in range(0, len(numbers), self._count)
        ]
        self._experts = ExpertResidency(layers, [1] * len(numbers))
        self._experts.limit(room * room_for(1))

    def use(self, layer: int, wanted: Sequence[int]) -> int:
        parts = [layer * self._count + expert for expert in wanted]
        there = sum(part in self._experts for part in parts)
        self._experts.use(parts)
        for part in parts:
            if (buffer := self._experts.buffer(part)) is not None:
                self._experts.arrived(part, buffer)
        return there


class OneList:
    """Those used last, of all layers together."""

    def __init__(self, routing: Routing, room: int) -> None:
        self._kept: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._room = room

    def use(self, layer: int, wanted: Sequence[int]) -> int:
        keys = [(layer, expert) for expert in wanted]
        there = sum(key in self._kept for key in keys)
        for key in keys:
            self._kept[key] = None
            self._kept.move_to_end(key)
        while len(self._kept) > self._room:
            self._kept.popitem(last=False)
        return there


class Ranked:
    """Each layer keeps as many, those that come first by some value."""

    def __init__(self, routing: Routing, room: int, value: Callable[[F64, F64], F64]) -> None:
        shape = (routing.layers, routing.experts)
        self._uses, self._last = np.zeros(shape), np.full(shape, -1.0)
        self._room, self._value, self._time = room // routing.layers, value, 0
        self._kept: list[set[int]] = [set() for _ in range(routing.layers)]

    def use(self, layer: int, wanted: Sequence[int]) -> int:
        kept = self._kept[layer]
        there = len(kept.intersection(wanted))
        self._time += 1
        self._uses[layer] *= FADING
        self._uses[layer][list(wanted)] += 1
        self._last[layer][list(wanted)] = self._time
        candidates = np.array(sorted(kept.union(wanted)))
        value = self._value(self._uses[layer][candidates], self._last[layer][candidates])
        self._kept[layer] = {int(e) for e in candidates[np.argsort(-value, kind="stable")[: self._room]]}
        return there


class Foresight:
    """Drops what is needed again the latest (Belady, IBM Systems Journal 5, 1966), for each layer by itself."""

    def __init__(self, routing: Routing, room: int, trace: I64) -> None:
        self._next = _next_uses(trace, routing.experts)
        self._room = room // routing.layers
        self._kept: list[dict[int, int]] = [{} for _ in range(routing.layers)]
        self._token = [0] * routing.layers

    def use(self, layer: int, wanted: Sequence[int]) -> int:
        kept, token = self._kept[layer], self._token[layer]
        there = sum(expert in kept for expert in wanted)
        for place, expert in enumerate(wanted):
            kept[expert] = int(self._next[token, layer, place])
        for expert in sorted(kept, key=lambda e: kept[e])[self._room :]:
            del kept[expert]
        self._token[layer] += 1
        return there


def _next_uses(trace: I64, experts: int) -> I64:
    """When each expert that a token goes to is needed again."""
    tokens, layers, _ = trace.shape
    found, coming = np.empty_like(trace), np.full((layers, experts), tokens)
    rows = np.arange(layers)[:, None]
    for token in range(tokens - 1, -1, -1):
        found[token] = coming[rows, trace[token]]
        coming[rows, trace[token]] = token
    return found


def rank(x: F64) -> F64:
    return np.argsort(np.argsort(x)).astype(np.float64)


def rules(routing: Routing, room: int, trace: I64) -> dict[str, Rule]:
    return {
        "fading uses": FadingUses(routing, room),
        "recency": Ranked(routing, room, lambda uses, last: last),
        "one list": OneList(routing, room),
        "frequency": Ranked(routing, room, lambda uses, last: uses),
        "ranks": Ranked(routing, room, lambda uses, last: rank(uses) + rank(last)),
        "foresight": Foresight(routing, room, trace),
    }


def hit_rate(rule: Rule, trace: I64) -> float:
    """Over the second half of a trace."""
    tokens, layers, chosen = trace.shape
    hits = [sum(rule.use(layer, trace[token, layer].tolist()) for layer in range(layers)) for token in range(tokens)]
    return sum(hits[tokens // 2 :]) / ((tokens - tokens // 2) * layers * chosen)


def fixed_hit_rate(routing: Routing, room: int, trace: I64) -> float:
    """Of those that each layer used most in the first half, in the second."""
    half, found = len(trace) // 2, []
    for layer in range(routing.layers):
        counts = np.bincount(trace[:half, layer].ravel(), minlength=routing.experts)
        best = np.argsort(-counts)[: room // routing.layers]
        found.append(np.isin(trace[half:, layer], best).mean())
    return float(np.mean(found))


def neighbours_share(trace: I64) -> float:
    """Of a token's experts, those that the token before it went to."""
    tokens, layers, chosen = trace.shape
    both = sum(
        len(np.intersect1d(trace[t, layer], trace[t - 1, layer])) for t in range(1, tokens) for layer in range(layers)
    )
    return float(both / ((tokens - 1) * layers * chosen))


def observations(routing: Routing, tokens: int) -> Iterator[tuple[str, float, float]]:
    """What was published, and what this routing gives: the first on its own shape, the others with 10 of 512."""
    yield "neighbours share", 0.38, neighbours_share(routing.trace(min(tokens, 300)))
    wide = Routing(4, 512, 10, routing.stickiness, routing.taste, routing.topics, routing.stay)
    trace = wide.trace(tokens)
    for kept, published in ((64, 0.67), (128, 0.81)):
        yield (
            f"the last {kept} of 512",
            published,
            hit_rate(Ranked(wide, kept * wide.layers, lambda uses, last: last), trace),
        )
    yield "the commonest 32 of 512, later", 0.10, fixed_hit_rate(wide, 32 * wide.layers, trace)


def measure(routing: Routing, tokens: int) -> dict[str, list[float]]:
    trace = routing.trace(tokens)
    found: dict[str, list[float]] = {}
    for share in SHARES:
        room = int(share * routing.layers * routing.experts)
        for name, rule in rules(routing, room, trace).items():
            found.setdefault(name, []).append(hit_rate(rule, trace))
        found.setdefault("fixed", []).append(fixed_hit_rate(routing, room, trace))
    return found


def plot(routing: Routing, found: dict[str, list[float]], path: Path) -> None:
    """Needs matplotlib (extra `plot`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="share of the experts that memory has room for", ylabel="needed and in memory")
    for name, rates in found.items():
        axes.plot(
            SHARES, rates, marker="o", markersize=3.5, label=name, linewidth=2.4 if name == "fading uses" else 1.2
        )
    axes.plot(SHARES, SHARES, color="#b5b5bd", linestyle=":", label="if all were needed as often")
    axes.set(
        xlim=(0, 0.78), ylim=(0, 1), title=f"{routing.chosen} of {routing.experts} experts, {routing.layers} layers"
    )
    axes.grid(color="#e7e7ec")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--stickiness", type=float, default=Routing.stickiness)
    parser.add_argument("--taste", type=float, default=Routing.taste)
    parser.add_argument("--stay", type=float, default=Routing.stay)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    routing = Routing(args.layers, args.experts, args.chosen, args.stickiness, args.taste, stay=args.stay)
    told: dict[str, Any] = {"observed": {}}
    for name, published, here in observations(routing, args.tokens):
        print(f"{name:34} published {published:5.0%}, here {here:5.0%}")
        told["observed"][name] = [published, here]
    told["hit_rates"] = found = measure(routing, args.tokens)
    print(f"\n{'in memory':12}" + "".join(f"{share:>9.1%}" for share in SHARES))
    for name, rates in found.items():
        print(f"{name:12}" + "".join(f"{rate:>9.1%}" for rate in rates))
    if args.plot:
        plot(routing, found, args.plot)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
