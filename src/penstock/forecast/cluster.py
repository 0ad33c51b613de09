"""What a model takes on several machines: a part of `penstock plan`. Not in it: guesses and prompts.

Before there are any, they are as this one, but for their memory, and for their disks where somebody says so; those of a
cluster measure themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.forecast.guess_plan import if_it_fits
from penstock.stages.choose_cut import choose_cut
from penstock.stages.cut import ModelParts, Network, Node
from penstock.system.sizes import MIB, parse_bytes, parse_rate
from penstock.weights.sizes import packed_size, raw_size, size_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.forecast.outlook import Form, Outlook, Subject
    from penstock.stages.cut import Cut, How, StageForecast
    from penstock.weights.sizes import StoredSize

RAY_WORKER_BYTES = 130 * 10**6
"""What Ray takes on every machine, in processes of its own: the raylet 25 MB, two agents 105 MB. These figures are PSS,
measured on Linux x86-64 with Ray 2.60.0; a third of the agents' are pages of Python that a stage maps too."""
RAY_HEAD_BYTES = RAY_WORKER_BYTES + 96 * 10**6
"""The same on the first machine, with the cluster's records (GCS, 41 MB) and the dashboard's process (55 MB)."""
RAY_PROCESS_BYTES = 150 * MIB
"""And in a process that uses it, as Penstock counts one, with its libraries' pages (docs/log.md); 41 MB of PSS."""
LEFT_PART, MOST_LEFT = 4, 1 << 30
"""Which part of a machine's memory is left to its system, up to a GiB."""
MOST_MACHINES = 256
NETWORK = "1Gbit"


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which machines there might be."""

    machines: tuple[int, ...]
    """Bytes of memory of each; the first is the one that is typed on, which has embedding and head."""
    network: Network
    disk_bytes: float | None = None
    """What each disk reads in a second; None for as much as the one that is measured."""

    @classmethod
    def parse(cls, machines: str, network: Network, disk: str | None = None) -> ClusterSettings:
        """From "2x4GiB,1x16GiB" and "524MB". Raises UsageError."""
        return cls(parse_machines(machines), network, None if disk is None else _speed(disk))


@dataclass(frozen=True, slots=True)
class Machines:
    """What a plan is for."""

    nodes: tuple[Node, ...]
    """By what they are called; the first is the one that is typed on."""
    alone: tuple[Node, ...]
    """Each to be compared with, without others and without Ray."""
    network: Network


@dataclass(frozen=True, slots=True)
class ClusterProspect:
    """A model in one form on machines."""

    estimated: bool
    """Whether its sizes are."""
    alone: dict[str, Cut | None]
    """By what a machine is called: on it alone. None where it does not fit, here and below."""
    ways: dict[How, Cut | None]

    @property
    def best(self) -> Cut | None:
        """The quickest way of sharing it out."""
        return min((cut for cut in self.ways.values() if cut), key=lambda cut: cut.seconds, default=None)

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        return {
            "estimated": self.estimated,
            "best": self.best and self.best.how,
            **{how: cut and _as_object(cut) for how, cut in self.ways.items()},
            "one_machine": [{"machine": name, "cut": cut and _as_object(cut)} for name, cut in self.alone.items()],
        }


@dataclass(frozen=True, slots=True)
class ClusterOutlook:
    """What machines make of a model, in either form."""

    machines: Machines
    context: int
    """Positions that keys and values are planned for."""
    row_bytes: int
    """That go with every hop, and come back."""
    forms: dict[Form, ClusterProspect]
    """Raw and packed, where that is another form."""

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        network = self.machines.network
        return {
            "machines": [
                {"machine": one.name, "ceiling": one.ceiling, "disk_bytes_per_second": one.disk_bytes}
                for one in self.machines.nodes
            ],
            "network_bytes_per_second": network.bytes_per_second,
            "hop_seconds": network.hop_seconds,
            "context": self.context,
            **{form: prospect.as_object() for form, prospect in self.forms.items()},
        }


def look_at_cluster(outlook: Outlook, machines: Machines, kv_dtype: str, hit_rate: float) -> ClusterOutlook:
    """What machines make of the model that `outlook` is of; `hit_rate` as for Budget."""
    subject = outlook.subject

    def prospect(form: Form) -> ClusterProspect:
        parts = parts_of(subject, form, outlook.context, kv_dtype, hit_rate)

        def cut(nodes: Sequence[Node], how: How) -> Cut | None:
            return if_it_fits(lambda: choose_cut(parts, nodes, machines.network, how))

        alone = {node.name: cut([node], "runs") for node in machines.alone}
        ways: tuple[How, ...] = ("runs", "dealt")
        return ClusterProspect(parts.head.estimated, alone, {how: cut(machines.nodes, how) for how in ways})

    forms: tuple[Form, ...] = ("raw", "packed") if subject.packs else ("raw",)
    row_bytes = 4 * subject.budget.architecture.config.hidden_size
    return ClusterOutlook(machines, outlook.context, row_bytes, {form: prospect(form) for form in forms})


def assumed_machines(outlook: Outlook, settings: ClusterSettings) -> Machines:
    """Those that are asked about, as this one but for what the settings say."""
    subject, disk = outlook.subject, settings.disk_bytes or outlook.disk.bytes_per_second
    many = len(settings.machines) > 1

    def node(name: str, memory: int, first: bool, ray: bool) -> Node:
        return Node(name, *_memory(subject, memory, first, ray), disk, outlook.compute)

    nodes = [
        node(f"{place + 1}, {in_gib(memory)}", memory, place == 0, many)
        for place, memory in enumerate(settings.machines)
    ]
    kinds = sorted({*settings.machines})
    alone = [node(f"one machine of {in_gib(memory)}", memory, True, False) for memory in kinds]
    return Machines(tuple(nodes), tuple(alone), settings.network)


def measured_machines(outlook: Outlook, others: Sequence[Node], network: Network) -> Machines:
    """This one as `outlook` has measured it, and others that have measured themselves."""
    budget, disk = outlook.subject.budget, outlook.disk.bytes_per_second
    process = budget.process + budget.scratch + budget.adapters
    alone = Node("this machine", budget.ceiling, process, disk, outlook.compute)
    here = replace(alone, name="here", process=process + RAY_PROCESS_BYTES)
    return Machines((here, *others), (alone,), network)


def parse_network(text: str) -> Network:
    """Of "1Gbit". Raises UsageError."""
    return Network(bytes_per_second=_speed(text))


def _speed(text: str) -> float:
    speed = parse_rate(text)
    if speed <= 0:
        raise UsageError("A network and a disk have some speed.", "Raise --network or --disk.")
    return speed


def parse_machines(text: str) -> tuple[int, ...]:
    """Bytes of memory of each machine, of "4x4GiB" or "2x4GiB,1x16GiB". Raises UsageError."""
    machines: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:([0-9]{1,6})\s*[xX*]\s*)?(.+)", part)
        if match is None:
            raise UsageError(f"{text[:100]!r} names no machines.", "Write them like 4x4GiB or 2x4GiB,1x16GiB.")
        count, memory = int(match[1] or 1), parse_bytes(match[2])
        if not count or len(machines) + count > MOST_MACHINES:
            raise UsageError(f"{text[:100]!r} is no number of machines.", f"Name 1 to {MOST_MACHINES}.")
        machines += [memory] * count
    return tuple(machines)


def parts_of(subject: Subject, form: Form, positions: int, kv_dtype: str, hit_rate: float) -> ModelParts:
    """The model in that form, layer by layer."""
    rest = {"positions": positions, "kv_dtype": kv_dtype, "hit_rate": hit_rate}
    return ModelParts.of(subject.budget.architecture, _sizes(subject, form), **rest)


def _sizes(subject: Subject, form: Form) -> Callable[[Sequence[str]], StoredSize]:
    """Of matrices by their names."""
    if form == subject.form and subject.tensors:
        tensors = {tensor.name: tensor for tensor in subject.tensors}
        return lambda names: size_here([tensors[name] for name in names])
    matrices = {matrix.name: matrix for matrix in subject.matrices}

    def of(names: Sequence[str]) -> StoredSize:
        some = [matrices[name] for name in names]
        return (packed_size(some) if form == "packed" else None) or raw_size(some)

    return of


def _memory(subject: Subject, memory: int, first: bool, ray: bool) -> tuple[int, int]:
    """A machine's ceiling, and what its process takes of it before there are weights."""
    budget = subject.budget
    beside = (RAY_HEAD_BYTES if first else RAY_WORKER_BYTES) * ray
    process = budget.process + budget.scratch + budget.adapters + RAY_PROCESS_BYTES * ray
    ceiling = memory - min(memory // LEFT_PART, MOST_LEFT) - beside
    return max(0, ceiling), process if first else process - subject.tokenizer


def in_gib(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / (1 << 30):.3g} GiB"


def _as_object(cut: Cut) -> dict[str, Any]:
    return {
        "seconds_per_token": cut.seconds,
        "streamed_bytes_per_pass": cut.streamed,
        "hops": cut.hops,
        "machines": [stage and _machine(stage) for stage in cut.stages],
    }


def _machine(stage: StageForecast) -> dict[str, Any]:
    return {
        "layers": list(stage.share.layers),
        "head": stage.share.head,
        "memory": asdict(stage.plan),
        "disk_seconds": stage.disk_seconds,
        "compute_seconds": stage.compute_seconds,
    }
