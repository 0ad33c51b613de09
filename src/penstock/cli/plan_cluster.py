"""What `penstock plan` tells with --cluster and --cluster-of: a model shared out among machines."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from penstock.cli.status_line import visible
from penstock.cli.tables import left, plain_table, right
from penstock.cli.units import format_seconds, format_size
from penstock.cli.whole_lines import tell, tell_rows, titled
from penstock.forecast.cluster import (
    RAY_HEAD_BYTES,
    RAY_PROCESS_BYTES,
    RAY_WORKER_BYTES,
    assumed_machines,
    in_gib,
    look_at_cluster,
    measured_machines,
)
from penstock.system.sizes import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from penstock.forecast.cluster import ClusterOutlook, ClusterProspect, ClusterSettings, Machines
    from penstock.forecast.outlook import Form, Outlook, PlanSettings, Subject
    from penstock.stages.cut import Cut, How, Network, Node, StageForecast

WAYS: dict[How, str] = {"runs": "layers in runs", "dealt": "layers dealt out one by one"}


def print_assumed(outlook: Outlook, settings: ClusterSettings, opened: PlanSettings, as_json: bool) -> None:
    """The whole output for machines that there might be, of a model that would be opened so."""
    same = groupby(settings.machines)
    names = " and ".join(f"{len([*machines])} of {in_gib(memory)}" for memory, machines in same)
    ray = [f"{nbytes / 1e6:.0f} MB" for nbytes in (RAY_HEAD_BYTES, RAY_WORKER_BYTES, RAY_PROCESS_BYTES)]
    machines = assumed_machines(outlook, settings)
    basis = (
        f"The first machine is the one that is typed on. A quarter of each one's memory, at most 1 GiB, is left "
        f"to its system; Ray takes {ray[0]} on the first and {ray[1]} on any other, and {ray[2]} in Penstock's own "
        f"process. Disks read {format_size(machines.nodes[0].disk_bytes)}/s each; CPUs are as fast as this one."
    )
    _print(outlook, machines, opened, as_json, f"machines: {names}", basis)


def print_measured(
    outlook: Outlook, others: Sequence[Node], network: Network, opened: PlanSettings, as_json: bool
) -> None:
    """The whole output for this machine and others that have measured themselves."""
    machines = measured_machines(outlook, others, network)
    if not as_json:
        console = Console(highlight=False)
        tell(console, "[bold]Machines of the cluster[/]")
        tell_rows(console, speeds_table(machines.nodes))
        tell(console, "")
    where = f"the {_counted(len(machines.nodes), 'machine')} of the cluster"
    _print(outlook, machines, opened, as_json, where, "Each machine was measured just now, and briefly.")


def measure_cluster(address: str, subject: Subject) -> list[Node]:
    """The other machines of a cluster, as they are for a model. Raises ClusterError, StageLostError."""
    from penstock.checkpoints.store import find_model, name_elsewhere
    from penstock.cluster.fleet import RayFleet
    from penstock.stages.measure import measure_nodes

    fleet = RayFleet(address)
    try:
        model = name_elsewhere(find_model(subject.name)) if subject.place == "here" else None
        return measure_nodes(fleet.nodes(), model)
    finally:
        fleet.close()


def _print(outlook: Outlook, machines: Machines, opened: PlanSettings, as_json: bool, where: str, basis: str) -> None:
    cluster = look_at_cluster(outlook, machines, opened.kv_dtype, opened.hit_rate or 0.0)
    if as_json:
        print(json.dumps({"model": outlook.subject.name, "basis": outlook.subject.basis, **cluster.as_object()}))
        return
    console = Console(highlight=False)
    tell(console, titled(f"A token of {escape(outlook.subject.name)} on {where}", seconds_table(cluster)), "")
    form, prospect = [*cluster.forms.items()][-1]
    if prospect.best is not None:
        tell(console, f"[bold]Machines, in MiB: {_name(form, prospect)}, {WAYS[prospect.best.how]}[/]")
        tell_rows(console, machines_table(cluster, prospect.best))
        tell(console, "")
    tell(console, verdict(prospect), "")
    tell(console, f"[dim]The sizes rest on {escape(outlook.subject.basis)}.[/]")
    console.print(
        f"[dim]A process has its read-ahead buffers in it, KV the rows of a pass; what is read is read in every pass. "
        f"{basis} A hop to another machine and back takes "
        f"{format_seconds(machines.network.seconds(cluster.row_bytes))}. Keys and values are of "
        f"{cluster.context:,} positions. Guesses are not counted: a pass brings one token.[/]"
    )


def speeds_table(nodes: Sequence[Node]) -> Table:
    """What was measured."""
    headings = [right(heading) for heading in ("ceiling", "disk", "CPU, one row", "packed")]
    table = plain_table(left(), *headings)
    for node in nodes:
        speeds = (node.disk_bytes, node.compute.row_bytes_per_second, node.compute.packed_row_bytes_per_second)
        table.add_row(escape(visible(node.name)), in_gib(node.ceiling), *(f"{format_size(one)}/s" for one in speeds))
    return table


def seconds_table(cluster: ClusterOutlook) -> Table:
    """A token on one machine and on all of them."""
    forms = cluster.forms.items()
    headings = [column for form, one in forms for column in (right(_name(form, one), "bold"), right("GB read", "dim"))]
    table = plain_table(left(), *headings)
    for node in cluster.machines.alone:
        table.add_row(node.name, *_cells([one.alone[node.name] for _, one in forms]))
    for how, words in WAYS.items():
        table.add_row(f"all, {words}", *_cells([one.ways[how] for _, one in forms]))
    return table


def machines_table(cluster: ClusterOutlook, cut: Cut) -> Table:
    """What each machine holds and does."""
    headings = ("ceiling", "process", "KV", "weights", "read", "disk", "compute")
    columns = [right(heading, "bold" if heading == "weights" else "") for heading in headings]
    table = plain_table(left(), left("layers"), *columns)
    for node, stage in zip(cluster.machines.nodes, cut.stages, strict=True):
        if stage is not None:
            table.add_row(escape(visible(node.name)), *_row(stage))
    return table


def verdict(prospect: ClusterProspect) -> str:
    """Which way is the better one, and why."""
    cut = prospect.best
    if cut is None:
        return "It does not fit on these machines."
    if cut.streamed == 0:
        why = "All weights stay in memory, and a pass goes through the machines once."
    elif cut.how == "dealt":
        why = "Dealt out, all disks read at the same time, each ahead of its turn."
    else:
        why = "A pass goes through the machines once, and each reads in its turn what it has no room for."
    said = f"{why} A token takes {format_seconds(cut.seconds)}, with {_counted(cut.hops, 'hop')}."
    if out := sum(stage is None for stage in cut.stages):
        said += f" {_counted(out, 'machine')} would only add to that, and {'is' if out == 1 else 'are'} left out."
    alone = {name: one.seconds for name, one in prospect.alone.items() if one}
    if alone and min(alone.values()) <= cut.seconds:
        name = min(alone, key=lambda name: alone[name])
        said += f" {name[0].upper()}{name[1:]} alone is as quick."
    return said


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _row(stage: StageForecast) -> tuple[str, ...]:
    plan = stage.plan
    sizes = (plan.ceiling, plan.process + plan.ring, plan.kv + plan.activations, plan.resident, plan.streamed)
    seconds = (stage.disk_seconds, stage.compute_seconds)
    return (ranges(stage.share.layers), *(f"{n / MIB:,.0f}" for n in sizes), *map(format_seconds, seconds))


def ranges(layers: Sequence[int]) -> str:
    """Layers for people: "0-9", or "16 of 0-30"."""
    if len(layers) == 1:
        return f"{layers[0]}"
    span = f"{layers[0]}-{layers[-1]}"
    return span if layers[-1] - layers[0] == len(layers) - 1 else f"{len(layers)} of {span}"


def _cells(cuts: Sequence[Cut | None]) -> list[str]:
    pairs = [
        (format_seconds(cut.seconds), f"{cut.streamed / 1e9:.2f}") if cut else ("does not fit", "") for cut in cuts
    ]
    return [cell for pair in pairs for cell in pair]


def _name(form: Form, prospect: ClusterProspect) -> str:
    return f"{form}, estimated" if prospect.estimated else form
