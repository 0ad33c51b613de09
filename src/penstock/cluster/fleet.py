"""The other machines of a Ray cluster, as places for stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penstock.cluster.connection import connect, disconnect
from penstock.system.sizes import MIB

if TYPE_CHECKING:
    from penstock.cluster.actor import ActorLine
    from penstock.stages.cut import Node
    from penstock.stages.messages import HostSettings

MEMORY, THREADS = "penstock_mib", "penstock_threads"
"""Resources that a node says it has (nodes.py): the ceiling of a process of Penstock, and its threads."""

NO_CEILING = 1
"""So many MiB stand for none: Ray leaves out what there is none of."""


@dataclass(frozen=True, slots=True)
class RayNode:
    """A machine of the cluster."""

    name: str
    """That of the machine, or its address."""
    address: str
    node_id: str
    """Ray's, in hexadecimal digits; another one after it was away."""
    ceiling: int | None
    """Bytes; None for what is free there."""
    threads: int | None
    """None for every CPU."""

    def start(self, settings: HostSettings) -> ActorLine:
        """As `Node.start`."""
        line = self._line()
        line.open(replace(settings, threads=self.threads))
        return line

    def measure(self, model: str | None) -> Node:
        """As `Node.measure`."""
        line = self._line()
        try:
            return line.measure(model, self.ceiling, self.threads)
        finally:
            line.close()

    def _line(self) -> ActorLine:
        from penstock.cluster.actor import ActorLine  # imports Ray

        return ActorLine(self.name, self.node_id)


class RayFleet:
    """Those that have joined, but for the one that this process is on."""

    def __init__(self, address: str) -> None:
        """Connect to a cluster. Raises ClusterError where there is none, or it refuses."""
        self.address = connect(address)

    def nodes(self) -> list[RayNode]:
        """Those in reach, by name."""
        import ray

        own = ray.get_runtime_context().get_node_id()
        return [node for node in every_node() if node.node_id != own]

    def close(self) -> None:
        """Leave the cluster."""
        disconnect()


def every_node() -> list[RayNode]:
    """All machines in reach, by name, this one too."""
    import ray

    found = [node for node in ray.nodes() if node["Alive"] and MEMORY in node["Resources"]]
    names = Counter(_name(node) for node in found)
    return sorted((_node(node, alone=names[_name(node)] == 1) for node in found), key=lambda node: node.name)


def _name(node: dict[str, Any]) -> str:
    return str(node.get("NodeName") or node["NodeManagerAddress"])


def _node(node: dict[str, Any], *, alone: bool) -> RayNode:
    """`alone`: whether no other node has its name."""
    name = _name(node) if alone else f"{_name(node)} ({node['NodeID'][:6]})"
    resources = node["Resources"]
    mib, threads = int(resources[MEMORY]), int(resources.get(THREADS, 0))
    ceiling = mib * MIB if mib > NO_CEILING else None
    return RayNode(name, node["NodeManagerAddress"], node["NodeID"], ceiling, threads or None)
