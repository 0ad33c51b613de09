"""Which layers go to which machine, and how long a pass takes then. Pure functions of numbers.

A pass goes from machine to machine as the layers follow one another. A *turn* is what a machine does of it at a
stretch: layers that follow one another; on the first machine the head comes before the first layer, since passes
follow one another too. In *runs* every machine has one turn, and where it does not hold its layers, its disk rests for
the turns of the others, but for what the ring has room for. *Dealt* out one by one, layers stream from all disks at the
same time, as long as a ring holds what comes while others have their turn (`Share.window`); so N disks count as N
(arXiv 2504.08791), at the price of a hop a layer. Experts are read when they are known to be needed, in their turn.

Where turns come at equal distances, a pass of one row takes

    max(max over machines of streamed / disk, sum over turns of max(arithmetic, (streamed - ring) / disk) + hops x hop)

seconds: a disk cannot read more than all the time, and turns follow one another. A forecast follows turn after turn,
for passes enough that they are alike. Choosing among cuts: choose_cut.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import UsageError
from penstock.memory.budget import LEAST_CHUNK_ROWS, Budget, Demand, Plan, ring_fill
from penstock.models.kv_planes import KvShape
from penstock.models.stage import Share
from penstock.stages.rates import ComputeSpeed, Rates
from penstock.weights.sizes import StoredSize

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.architectures.base import Architecture

How = Literal["runs", "dealt", "anyhow"]
"""Each machine's layers follow one another; are apart, and spread evenly; are as somebody wanted them."""

HOP_SECONDS = 4.7e-3
"""Without the bytes: measured between four machines that share two cores (docs/benchmarks.md). Ray's own benchmark has
0.5 ms for a call of an actor."""
ALIKE_PASSES = 6
WINDOW_ROUNDS = 3
"""The ring takes memory from weights, and then more streams: each round comes nearer by as much as one layer is of all
that a machine has."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that may hold layers."""

    name: str
    ceiling: int
    """Bytes that the process may take there."""
    process: int
    """Of them, what is gone before there are weights: interpreter, libraries, tokenizer, working memory of kernels."""
    disk_bytes: float
    """Read in a second."""
    compute: ComputeSpeed
    layers: tuple[int, ...] | None = None
    """Those whose weights are there; None for all."""


@dataclass(frozen=True, slots=True)
class Network:
    """Between the first machine and any other."""

    hop_seconds: float = HOP_SECONDS
    """There and back, without the rows."""
    bytes_per_second: float = 1e9 / 8

    def seconds(self, nbytes: int) -> float:
        """Of a turn elsewhere, to which so many bytes go, and come back."""
        return self.hop_seconds + 2 * nbytes / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What there is to share out. The embedding, whose rows are read one by one, takes no memory."""

    architecture: Architecture
    layers: tuple[StoredSize, ...]
    head: StoredSize
    positions: int
    """That every machine has keys and values for, in its layers."""
    kv_dtype: str = "bf16"
    hit_rate: float = 0.0
    """How often an expert that is needed is in memory, at least, as for Budget."""

    @classmethod
    def of(cls, architecture: Architecture, size_of: Callable[[Sequence[str]], StoredSize], **rest: Any) -> ModelParts:
        """`size_of`: what matrices of such names take, as size_here tells it of tensors; `rest`: the other fields."""
        layers = range(architecture.config.num_hidden_layers)
        sizes = tuple(size_of(architecture.layer_matrices(layer)) for layer in layers)
        return cls(architecture, sizes, size_of([architecture.head]), **rest)

    @property
    def row_bytes(self) -> int:
        """Of a hidden row, on its way to another machine."""
        return 4 * self.architecture.config.hidden_size

    def budget(self, node: Node, share: Share, size: StoredSize) -> Budget:
        """Of a stage there, with weights of such a size."""
        remote, rate = len(share.layers) < len(self.layers), self.hit_rate
        whole = Budget(
            self.architecture, 0, node.ceiling, node.process, 0, head=share.head, remote=remote, hit_rate=rate
        )
        return whole.storing(size)

    def kv_bytes(self, layers: int) -> int:
        """Of so many of them."""
        return KvShape.of(self.architecture.config, self.kv_dtype, layers).bytes_for(self.positions)


@dataclass(frozen=True, slots=True)
class Work:
    """What a turn takes."""

    scanned: float
    """Bytes that a disk may have read before."""
    demanded: float
    """Bytes that it may not: of experts."""
    disk_bytes: float
    arithmetic: float
    """Seconds."""

    def seconds(self, ahead: float) -> float:
        """With so many bytes in the ring."""
        return max(self.arithmetic, (max(0.0, self.scanned - ahead) + self.demanded) / self.disk_bytes)


@dataclass(frozen=True, slots=True)
class _Turn:
    first: int
    """Its first layer; the number of layers for the head alone."""
    place: int
    work: Work
    hop: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What a machine does of a pass of one row."""

    node: Node
    share: Share
    plan: Plan
    """How its ceiling is shared out."""
    ahead: int
    """Bytes that its ring has room for."""
    compute_seconds: float
    demanded: int
    """Bytes of experts that it reads, which no ring has ahead."""
    layers_bytes: int
    """What its layers take as stored, without the head."""

    @property
    def disk_seconds(self) -> float:
        """For which its disk reads."""
        return self.plan.streamed / self.node.disk_bytes

    @property
    def full(self) -> float:
        """Which part of the ceiling is used; 1 where weights stream."""
        plan = self.plan
        used = plan.process + plan.ring + plan.allowance + plan.kv + plan.activations + plan.resident
        return 1.0 if plan.streamed or plan.idle else used / plan.ceiling

    def work(self, part: float, head: bool) -> Work:
        """Of a turn with such a part of its layers, with or without the head."""
        of_head = _head_scanned(self.plan, self._head_bytes, self.share.window)
        return Work(
            scanned=part * (self.plan.scanned - of_head) + head * of_head,
            demanded=part * self.demanded,
            disk_bytes=self.node.disk_bytes,
            arithmetic=self.compute_seconds * (part * self.layers_bytes + head * self._head_bytes) / self.plan.weights,
        )

    @property
    def _head_bytes(self) -> int:
        return self.plan.weights - self.layers_bytes


def _head_scanned(plan: Plan, head: int, window: int) -> int:
    """Of what streams, the head, of so many bytes: beside a window it stays in memory first."""
    if window:
        return min(plan.scanned, max(0, head - plan.resident))
    return plan.scanned * head // max(1, plan.weights - plan.experts)


@dataclass(frozen=True, slots=True)
class Cut:
    """A model shared out, and what to expect of it."""

    how: How
    stages: tuple[StageForecast | None, ...]
    """By node; None for those that are left out."""
    hops: int
    """Turns on machines other than the first."""
    seconds: float
    """Of a pass of one row."""

    @property
    def shares(self) -> tuple[Share | None, ...]:
        """By node; None for those that are left out."""
        return tuple(None if stage is None else stage.share for stage in self.stages)

    @property
    def taking_part(self) -> list[StageForecast]:
        """Those that are not left out."""
        return [stage for stage in self.stages if stage is not None]

    @property
    def streamed(self) -> int:
        """Bytes that all machines together read in a pass."""
        return sum(stage.plan.streamed for stage in self.taking_part)


def forecast_cut(
    parts: ModelParts, nodes: Sequence[Node], shares: Sequence[Share | None], network: Network, how: How = "anyhow"
) -> Cut:
    """What to expect of a cut that is given: the first share is of the first node, which has embedding and head.

    Rings are made to hold what comes between turns, where that is quicker: between those that come at equal distances,
    or between any, which takes more room. Raises MemoryCeilingError where a node is too small for its share.
    """
    ways = (no_reach, even_reach, longest_reach)
    return min((_forecast(parts, nodes, shares, network, how, way) for way in ways), key=lambda cut: cut.seconds)


def _forecast(
    parts: ModelParts,
    nodes: Sequence[Node],
    shares: Sequence[Share | None],
    network: Network,
    how: How,
    reach_of: Callable[[Share, int], float],
) -> Cut:
    stages: list[StageForecast | None] = [None] * len(nodes)
    turns: list[_Turn] = []
    layers = len(parts.layers)
    for place, share in enumerate(shares):
        if share is None:
            continue
        own = reduce(add, (parts.layers[layer] for layer in share.layers))
        stage = stages[place] = forecast_stage(parts, nodes[place], share, own, reach_of(share, layers))
        for turn, head in turns_of(share, layers):
            part = sum(parts.layers[layer].nbytes for layer in turn) / own.nbytes
            hop = network.seconds(parts.row_bytes) if place else 0.0
            turns.append(_Turn(min(turn, default=layers), place, stage.work(part, head), hop))
    hops = sum(turn.place > 0 for turn in turns)
    seconds = _seconds_of_pass(sorted(turns, key=lambda turn: turn.first), stages)
    # A large ring may take more passes than were looked at to run dry, but no disk can read less than it must for ever.
    seconds = max(seconds, *(stage.disk_seconds for stage in stages if stage is not None))
    return Cut(how, tuple(stages), hops, seconds)


def _seconds_of_pass(turns: Sequence[_Turn], stages: Sequence[StageForecast | None]) -> float:
    """Of the last of some passes: each disk reads on while its ring has room."""
    rings = [0 if stage is None else stage.ahead for stage in stages]
    ahead, ended, clock, begun = [float(ring) for ring in rings], [0.0] * len(rings), 0.0, 0.0
    for _ in range(ALIKE_PASSES):
        begun = clock
        for turn in turns:
            place, work = turn.place, turn.work
            clock += turn.hop
            there = min(rings[place], ahead[place] + work.disk_bytes * (clock - ended[place]))
            seconds = work.seconds(there)
            left = there + work.disk_bytes * seconds - work.scanned - work.demanded
            ahead[place] = min(rings[place], max(0.0, left))
            clock += seconds
            ended[place] = clock
    return clock - begun


def turns_of(share: Share, layers: int) -> list[tuple[tuple[int, ...], bool]]:
    """The layers of each turn, of a model of so many, and whether the head is in it."""
    turns: list[list[int]] = []
    for layer in [*sorted(share.layers), *([layers] if share.head else [])]:  # the head comes after the last one
        if turns and turns[-1][-1] == layer - 1:
            turns[-1].append(layer)
        else:
            turns.append([layer])
    if share.head and turns[0][0] == 0 and len(turns) > 1:
        turns[0] += turns.pop()
    return [(tuple(layer for layer in turn if layer < layers), layers in turn) for turn in turns]


def no_reach(share: Share, layers: int) -> float:
    """The ring is as in a model that is not shared out."""
    return 0.0


def even_reach(share: Share, layers: int) -> float:
    """How many of its layers a disk that never rests is ahead at most, in a model of so many that take equally long,
    if its turns are of one layer, at equal distances; 0 where it has only one."""
    many = sum(bool(turn) for turn, _ in turns_of(share, layers)) > 1
    return 1 - len(share.layers) / layers if many else 0.0


def longest_reach(share: Share, layers: int) -> float:
    """The same, of its turns as they are."""
    if not even_reach(share, layers):
        return 0.0
    rate, level, levels = len(share.layers) / layers, 0.0, [0.0]
    for layer in range(layers):
        level += rate - (layer in share.layers)
        levels.append(level)
    return max(levels) - min(levels)


def forecast_stage(parts: ModelParts, node: Node, share: Share, size: StoredSize, reach: float) -> StageForecast:
    """Of layers of such a size, of which the ring is to hold as many as `reach` says. Raises MemoryCeilingError."""
    head, count = share.head, len(share.layers)
    whole = size + parts.head if head else size
    budget, kv = parts.budget(node, share, whole), parts.kv_bytes(count)
    most_window = budget.plan(Demand(rows=LEAST_CHUNK_ROWS, kv=kv)).resident // 2
    window, plan = 0, budget.plan(Demand(kv=kv))
    for _ in range(WINDOW_ROUNDS if reach else 0):
        scanned = plan.scanned - _head_scanned(plan, whole.nbytes - size.nbytes, 1)
        window = min(most_window, int(reach * scanned / count))
        plan = replace(budget, window=window).plan(Demand(kv=kv))
    share_of_experts = parts.architecture.expert_share(1)
    compute = Rates.of(whole, node.disk_bytes, node.compute).row_seconds(plan, share_of_experts)
    demanded = plan.demanded(share_of_experts)
    ahead = int(ring_fill(whole.chunk) * plan.ring)
    return StageForecast(node, replace(share, window=window), plan, ahead, compute, demanded, size.nbytes)


def parse_cut(text: str, layers: int, nodes: int) -> How | tuple[Share, ...]:
    """What `--cut` means for a model of so many layers and so many machines: "runs", "dealt", or a share for each of
    the first machines, from ranges like "0-9,10-20,21-31". Raises UsageError."""
    if text in ("runs", "dealt"):
        return "runs" if text == "runs" else "dealt"
    held = [_range(part, text) for part in text.split(",")]
    if len(held) > nodes:
        raise UsageError(f"The cut {text} has {len(held)} parts for {_machines(nodes)}.", "Give one for each at most.")
    last = layers - 1
    for own in held:
        if own[-1] > last:
            raise UsageError(f"The cut {text} names layer {own[-1]}, but the last one is {last}.", f"End with {last}.")
    times = [sum(layer in own for own in held) for layer in range(layers)]
    for wrong, words in ((0, "goes to no machine"), (2, "goes to two machines")):
        found = [layer for layer, count in enumerate(times) if min(count, 2) == wrong]
        if found:
            raise UsageError(
                f"The cut {text} is not whole: layer {found[0]} {words}.", f"Name each of 0 to {last} once."
            )
    return tuple(Share(tuple(own), embedding=not place, head=not place) for place, own in enumerate(held))


def _range(part: str, text: str) -> range:
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise UsageError(
            f"{text!r} is no cut.", "Give `runs`, `dealt`, or ranges like 0-9,10-20,21-31, this machine's first."
        )
    return range(first, last + 1)


def _machines(count: int) -> str:
    return f"{count} machine{'s' * (count != 1)}"
