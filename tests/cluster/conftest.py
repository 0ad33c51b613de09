"""A cluster of Ray nodes on this machine, set up as `penstock cluster` does."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from penstock.cluster.fleet import MEMORY
from penstock.cluster.settings import Membership, new_token

OBJECT_STORE_BYTES = 78_643_200
"""The least that Ray takes."""
MACHINE_MIB = 800
"""Ceiling of a process on a machine; Ray imports there what it finds installed, pyarrow and others."""


if find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

# Ray reads the environment when it is imported, as tests are collected.
TOKEN = Path(tempfile.mkdtemp(prefix="penstock-cluster-")) / "token"
new_token(TOKEN)
os.environ.update(Membership("", str(TOKEN)).environment())
atexit.register(shutil.rmtree, TOKEN.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def token() -> Path:
    """What the machines let each other in with."""
    return TOKEN


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A head, and two machines, one and two, of MACHINE_MIB each; `machines.address` is where."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for name in ("one", "two"):
            add_machine(cluster, name)
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


def add_machine(cluster: Any, name: str, **environment: str) -> Any:
    """One more, whose processes have that in their environment."""
    return cluster.add_node(
        num_cpus=1,
        resources={MEMORY: MACHINE_MIB},
        object_store_memory=OBJECT_STORE_BYTES,
        node_name=name,
        env_vars=environment or None,
    )
