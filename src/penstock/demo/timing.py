"""What an 8B would take on this machine, from a few layers of its true size, timed in three ways by turns.

One way is the usual one: a file a layer, loaded whole, then run, with the page cache cold. The others are Penstock's:
the same weights streamed past the same arithmetic, as they are and packed.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import Kernels
from penstock.demo.layers import SHAPE
from penstock.disk.new_files import settle
from penstock.forecast.seconds import forecast_token
from penstock.llm import LLM
from penstock.memory.budget import Budget, Demand
from penstock.models.kv_planes import KvShape
from penstock.options import OpenOptions
from penstock.safetensors_header import TensorInfo
from penstock.sampling import SamplingParams
from penstock.stages.rates import ComputeSpeed, Rates
from penstock.synth.shapes import shape_config
from penstock.system import machine
from penstock.weights.sizes import packed_size, pass_matrices, raw_size

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.demo.layers import Layers
    from penstock.forecast.seconds import Forecast
    from penstock.weights.sizes import StoredSize

ALL_SECONDS, STREAM_SECONDS = 15.0, 5.0
ROUNDS = 3
MOST_PASSES = 5
CONTEXT = 512
"""Positions that the forecast has keys and values for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One way through the layers, with one row: bytes and seconds of a layer."""

    layer_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Weights loaded or streamed in a second, computing included."""
        return self.layer_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class Timings:
    """A layer loaded from its file, then run; streamed; and streamed packed."""

    loaded: Timing
    streamed: Timing
    packed: Timing


@dataclass(frozen=True, slots=True)
class Tokens:
    """A token of the whole model, raw and packed."""

    raw: Forecast
    packed: Forecast


def time_all(layers: Layers) -> Timings:
    """Each way by turns, since disks drift: medians of up to ROUNDS, begun within ALL_SECONDS.

    Raises CheckpointError and ReadError.
    """
    rounds: list[tuple[Timing, ...]] = []
    begin = time.perf_counter()
    while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - begin < ALL_SECONDS):
        rounds.append((time_loading(layers.raw), time_streaming(layers.raw), time_streaming(layers.packed)))
    middle = (len(rounds) - 1) // 2
    return Timings(*(sorted(way, key=lambda timing: timing.seconds)[middle] for way in zip(*rounds, strict=True)))


def time_loading(path: Path) -> Timing:
    """A file a layer: read whole, by way of a cold page cache, then applied to one row. Raises CheckpointError."""
    kernels, checkpoint = Kernels(), open_checkpoint(path)
    by_file: dict[Path, list[TensorInfo]] = {}
    for tensor in checkpoint.tensors.values():
        if isinstance(tensor, TensorInfo) and len(tensor.shape) == 2:
            by_file.setdefault(tensor.path, []).append(tensor)
    begin = time.perf_counter()
    for file, tensors in by_file.items():
        _load_and_run(file, tensors, kernels)
    seconds, layers = time.perf_counter() - begin, checkpoint.config.num_hidden_layers
    return Timing(sum(file.stat().st_size for file in by_file) // layers, seconds / layers)


def time_streaming(path: Path) -> Timing:
    """Passes of one row that keep nothing in memory: the median after the first, if STREAM_SECONDS leave time for more.

    Raises ReadError.
    """
    begin = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=MOST_PASSES, ignore_eos=True)
    with LLM(path, OpenOptions(max_resident=0)) as llm:
        for piece in llm.stream([0], params):
            log = piece.stats.log
            if time.perf_counter() - begin > STREAM_SECONDS:
                break
        typical = statistics.median(totals.seconds for totals in log[1:] or log)
        layers = llm.config.num_hidden_layers
        return Timing(llm.weights.pass_bytes // layers, typical / layers)


def forecast(timings: Timings, ceiling: int, compute: ComputeSpeed) -> Tokens:
    """A token of the whole 8B in a process of at most `ceiling` bytes, with its weights as small as those of the packed
    layers, and read as fast as `timings` say.

    Raises MemoryCeilingError, which names the least that works.
    """
    config, kernels = parse_config(shape_config(SHAPE), SHAPE), Kernels()
    matrices = pass_matrices(config)
    raw = raw_size(matrices)
    ratio = timings.packed.layer_bytes / timings.streamed.layer_bytes
    packed = replace(packed_size(matrices) or raw, nbytes=int(raw.nbytes * ratio))
    budget = Budget(
        architecture=Architecture(config),
        weights=raw.nbytes,
        ceiling=ceiling,
        process=machine.footprint().nbytes,
        scratch=kernels.scratch_bytes * kernels.threads,
    )
    demand = Demand(kv=KvShape.of(config, "bf16").bytes_for(CONTEXT))

    def token(size: StoredSize, timing: Timing) -> Forecast:
        return forecast_token(budget.storing(size).plan(demand), Rates.of(size, timing.bytes_per_second, compute))

    return Tokens(token(raw, timings.streamed), token(packed, timings.packed))


def _load_and_run(file: Path, tensors: list[TensorInfo], kernels: Kernels) -> None:
    """The file is out of the page cache before and after."""
    with file.open("rb") as opened:
        settle(opened)
        data = np.fromfile(opened, np.uint8)
        for tensor in tensors:
            n_out, n_in = tensor.shape
            x, out = np.ones((1, n_in), np.float32), np.empty((1, n_out), np.float32)
            kernels.matmul(x, data[tensor.begin : tensor.end], tensor.dtype.value, out)
        settle(opened)
