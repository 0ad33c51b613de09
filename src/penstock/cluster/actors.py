"""Processes of Ray on a machine of a cluster. Each works in one thread, and another one says how it is.

Sources: Ray's documentation, "Actors", "Limiting Concurrency Per-Method with Concurrency Groups" and "Scheduling".
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from collections.abc import Collection


def start_actor(kind: type, node_id: str, signs: Collection[str]) -> Any:
    """Have one started on a node, by Ray's id of it; calls wait until it is there. `signs`: the methods that say how it
    is, and are answered while another one works."""
    for name, method in vars(kind).items():
        if callable(method) and not name.startswith("_"):
            setattr(kind, name, ray.method(concurrency_group="signs" if name in signs else "work")(method))
    remote: Any = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"work": 1, "signs": 1})(kind)
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return remote.options(scheduling_strategy=there).remote()


def end_actor(actor: Any) -> None:
    """End the process; one that is gone is left alone."""
    with suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)


def first_line(error: Exception) -> str:
    """Of what Ray says; the rest are the stacks of its processes."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
