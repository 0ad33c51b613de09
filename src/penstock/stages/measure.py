"""What a machine has for a model, and what it can do, as `choose_cut` wants to know it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.store import find_model, store_root
from penstock.compute.kernels import Kernels
from penstock.memory.budget import allowance
from penstock.stages.cut import Node
from penstock.stages.probe import PROBE_FILE_BYTES, measure_compute, measure_disk, probe_file
from penstock.system import machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from penstock.stages import line

DISK_BYTES, DISK_SECONDS = 10**9, 1.0
"""What the probe of a disk reads at most."""


def measure_nodes(nodes: Sequence[line.Node], model: str | None) -> list[Node]:
    """All of them, at the same time. Raises as `line.Node.measure` does."""
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        return list(pool.map(lambda node: node.measure(model), nodes))


def measure_node(name: str, model: str | None, ceiling: int | None, threads: int | None) -> Node:
    """This machine, in a process that does nothing else yet; `model`: whose files the disk is measured with, None for a
    new file. Raises CheckpointError and its kin, ReadError, PenstockError where there is no room for that file."""
    machine.return_large_arrays()
    available = machine.available_bytes()
    with _files(model) as (files, layers):
        most = available + machine.anonymous_bytes() if ceiling is None else ceiling
        return replace(measured(name, files, most, Kernels(threads), 0), layers=layers)


@contextmanager
def _files(model: str | None) -> Iterator[tuple[Sequence[Path], tuple[int, ...] | None]]:
    """And which layers they have, as `Checkpoint.layers`."""
    if model is not None:
        checkpoint = open_checkpoint(find_model(model), share=True)
        yield checkpoint.files, checkpoint.layers
        return
    with probe_file(store_root(), PROBE_FILE_BYTES) as path:
        yield [path], None


def measured(name: str, files: Sequence[Path], ceiling: int, kernels: Kernels, reserved: int) -> Node:
    """This process, of whose memory `reserved` bytes are for something else, beside what it takes now."""
    process = machine.footprint().nbytes + kernels.scratch_bytes * kernels.threads + reserved
    room = max(0, ceiling - process - allowance(ceiling))
    disk = measure_disk(files, DISK_BYTES, seconds=DISK_SECONDS, memory=room)
    compute = measure_compute(kernels, memory=room)
    machine.trim_heap()
    return Node(name, ceiling, process, disk.bytes_per_second, compute)
