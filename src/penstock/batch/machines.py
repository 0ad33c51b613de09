"""The machines of a cluster as benches, each with a whole copy of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.cluster.connection import connect, disconnect
from penstock.cluster.fleet import every_node

if TYPE_CHECKING:
    from penstock.batch.bench_actor import RayBench


def cluster_benches(address: str) -> list[RayBench]:
    """One on each machine of a cluster, this one too where it is a part of it. Raises ClusterError where there is no
    cluster, or it refuses."""
    connect(address)
    try:
        from penstock.batch.bench_actor import RayBench  # imports Ray, which reads the environment that `connect` sets

        return [RayBench(address, node) for node in every_node()]
    finally:
        disconnect()
