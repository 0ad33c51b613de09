"""A cluster on one machine: each node in a network namespace and a control group of its own, as if they were several.

The first node, where the caller runs programs, is in the namespace of the bridge, and no link limits it. Needs root,
iproute2 and Ray. Sources: ip-netns(8), tc-tbf(8).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from control_group import ROOT, GroupV1, GroupV2, check_system
from limit import whole_disk

from penstock.errors import UsageError

BRIDGE, NETWORK = "penstock0", "10.77.0"
PORT = 6399


@dataclass(frozen=True)
class Machine:
    """What one node is to be like; None is no limit."""

    memory: int | None = None
    """Bytes that all its processes may hold together, page cache counted."""
    read: int | None = None
    """Bytes a second from the disk."""
    ceiling: str = "400MiB"
    """Of a process of Penstock there."""


@dataclass
class LocalCluster:
    """One that runs; `store` is the PENSTOCK_HOME of the first node."""

    address: str
    store: Path
    groups: list[GroupV1 | GroupV2] = field(default_factory=list)
    """Of all nodes, Ray's processes in them."""


@contextmanager
def local_cluster(machines: list[Machine], rate: str | None = None, disk: Path = Path("/")) -> Iterator[LocalCluster]:
    """A node for each of `machines`, the first of which is the head; `rate` is of each link, as tc has it (1gbit)."""
    check_system()
    if os.geteuid() != 0:
        raise UsageError("Only root may make namespaces and control groups.", "Run it with sudo.")
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="penstock-cluster-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _bridge(stack)
        cluster = LocalCluster(f"{NETWORK}.1:{PORT}", folder / "head")
        for number, machine in enumerate(machines, 1):
            group = machine_group(stack, number, machine, disk)
            cluster.groups.append(group)
            if number == 1:
                head = ("--advertise", f"{NETWORK}.1", "--port", str(PORT), "--memory", machine.ceiling)
                _penstock(folder / "head", [], "start", *head, group=group)
                continue
            _namespace(stack, number, rate)
            store, inside = folder / f"node{number}", ["ip", "netns", "exec", f"penstock{number}"]
            told = ("--token-file", str(folder / "head" / "cluster-token"), "--memory", machine.ceiling)
            where = ("--advertise", f"{NETWORK}.{number}")
            _penstock(store, inside, "join", cluster.address, *told, *where, group=group)
        yield cluster


def _bridge(stack: ExitStack) -> None:
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    stack.callback(_run, "ip", "link", "del", BRIDGE, check=False)
    _run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")


def _namespace(stack: ExitStack, number: int, rate: str | None) -> None:
    name, outer, inner = f"penstock{number}", f"pso{number}", f"psi{number}"
    _run("ip", "netns", "add", name)
    stack.callback(_run, "ip", "netns", "del", name, check=False)
    _run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
    stack.callback(_run, "ip", "link", "del", outer, check=False)
    _run("ip", "link", "set", inner, "netns", name)
    _run("ip", "link", "set", outer, "master", BRIDGE)
    _run("ip", "link", "set", outer, "up")
    inside = ("ip", "netns", "exec", name)
    _run(*inside, "ip", "addr", "add", f"{NETWORK}.{number}/24", "dev", inner)
    for device in ("lo", inner):
        _run(*inside, "ip", "link", "set", device, "up")
    if rate is not None:
        shape = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        _run("tc", "qdisc", "add", "dev", outer, *shape)
        _run(*inside, "tc", "qdisc", "add", "dev", inner, *shape)


def machine_group(stack: ExitStack, number: int, machine: Machine, disk: Path) -> GroupV1 | GroupV2:
    name = f"penstock-{os.getpid()}-{number}"
    v1 = all((ROOT / controller / "cgroup.procs").exists() for controller in GroupV1.CONTROLLERS)
    group = GroupV1(name) if v1 else GroupV2(name)
    stack.callback(group.remove)
    group.limit(machine.memory, machine.read, whole_disk(disk) if machine.read is not None else "")
    return group


def _penstock(store: Path, inside: list[str], *command: str, group: GroupV1 | GroupV2) -> None:
    """Run `penstock cluster ...` in a namespace and a group; what it starts stays there."""
    subprocess.run(
        [*inside, sys.executable, "-m", "penstock", "cluster", *command],
        env={**os.environ, "PENSTOCK_HOME": str(store)},
        preexec_fn=group.enter,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, stderr=None if check else subprocess.DEVNULL)
