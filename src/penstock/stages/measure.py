"""What a machine has for a model, and what it can do, as `choose_cut` wants to know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.store import find_model
from penstock.compute.kernels import Kernels
from penstock.memory.budget import allowance
from penstock.stages.cut import Node
from penstock.stages.probe import measure_compute, measure_disk
from penstock.system import machine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DISK_BYTES, DISK_SECONDS = 10**9, 1.0
"""What the probe of a disk reads at most."""


def measure_node(name: str, model: str, ceiling: int | None, threads: int | None) -> Node:
    """This machine, in a process that does nothing else yet. Raises CheckpointError and its kin, ReadError."""
    machine.return_large_arrays()
    available = machine.available_bytes()
    files = open_checkpoint(find_model(model)).files
    most = available + machine.anonymous_bytes() if ceiling is None else ceiling
    return measured(name, files, most, Kernels(threads), 0)


def measured(name: str, files: Sequence[Path], ceiling: int, kernels: Kernels, reserved: int) -> Node:
    """This process, of whose memory `reserved` bytes are for something else, beside what it takes now."""
    process = machine.footprint().nbytes + kernels.scratch_bytes * kernels.threads + reserved
    room = max(0, ceiling - process - allowance(ceiling))
    disk = measure_disk(files, DISK_BYTES, seconds=DISK_SECONDS, memory=room)
    compute = measure_compute(kernels, memory=room)
    machine.trim_heap()
    return Node(name, ceiling, process, disk.bytes_per_second, compute)
