"""What an 8B would take on this machine, from two layers of its true size: made, timed both ways, and deleted again.

One way is the usual one: a file a layer, loaded whole, then run, with the page cache cold. The other is Penstock's: the
same bytes, streamed past the same arithmetic.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import machine
from penstock.checkpoint import open_checkpoint
from penstock.config import parse_config
from penstock.errors import PenstockError
from penstock.forecast import Rates, forecast_token, pass_weights
from penstock.kernels import Kernels
from penstock.kv_cache import KvShape
from penstock.llm import LLM, Options
from penstock.plan import Budget, Demand
from penstock.probe import measure_compute
from penstock.sampling import SamplingParams
from penstock.shapes import shape_config
from penstock.store import store_root
from penstock.synth import plan_shards, synthesize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from penstock.forecast import Forecast
    from penstock.format import TensorInfo

SHAPE = "llama-3.1-8b"
LAYERS = 2
ROOM_BYTES = 2_500_000_000
"""Free disk that the layers are made in: their own size, and as much again to spare."""
MAKE_SECONDS, BOTH_SECONDS, STREAM_SECONDS = 25.0, 15.0, 5.0
ROUNDS = 3
MOST_PASSES = 5
CONTEXT = 512
"""Positions that the forecast has keys and values for."""
VOCABULARY = 256
"""Entries, so that embedding and head come to next to nothing."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One way through the layers, with one row: bytes and seconds of a layer."""

    layer_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.layer_bytes / self.seconds


class TooSlowError(PenstockError):
    """A disk on which the layers cannot be made within the demo's time."""


def find_room(nbytes: int = ROOM_BYTES) -> Path:
    """A directory on the disk that models would be kept on. Raises PenstockError where it has no room for them."""
    root = store_root()
    folder = next(place for place in (root, *root.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise PenstockError(
            f"{folder} has {free / 1e9:.1f} GB of disk free, and two layers need {nbytes / 1e9:.1f} GB.",
            "Free some space, or let PENSTOCK_HOME name a directory on another disk.",
        )
    return folder


@contextmanager
def made_layers(
    folder: Path,
    config: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Path]:
    """A checkpoint of `config`'s layers, one file each, in a directory of its own in `folder`, gone in the end.

    Fewer layers on a disk that cannot take all of them in MAKE_SECONDS. Raises TooSlowError where not even one, and
    PenstockError where the disk fails.
    """
    with _termination_as_interrupt(), _own_directory(folder) as own:
        for layers in range(config["num_hidden_layers"], 0, -1):
            try:
                _make(own / "layers", {**config, "num_hidden_layers": layers}, on_progress)
                break
            except TooSlowError:
                if layers == 1:
                    raise
        yield own / "layers"


def layers_config() -> dict[str, Any]:
    """LAYERS layers of the 8B."""
    return {**shape_config(SHAPE, LAYERS), "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}


def time_both(path: Path) -> tuple[Timing, Timing]:
    """Loading and streaming by turns, since disks drift: medians of up to ROUNDS, begun within BOTH_SECONDS.

    Raises CheckpointError and ReadError.
    """
    rounds: list[tuple[Timing, Timing]] = []
    begin = time.perf_counter()
    while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - begin < BOTH_SECONDS):
        rounds.append((time_loading(path), time_streaming(path)))
    loaded, streamed = (sorted(timings, key=lambda timing: timing.seconds) for timings in zip(*rounds, strict=True))
    middle = (len(rounds) - 1) // 2
    return loaded[middle], streamed[middle]


def time_loading(path: Path) -> Timing:
    """A file a layer: read whole, by way of a cold page cache, then applied to one row. Raises CheckpointError."""
    kernels, checkpoint = Kernels(), open_checkpoint(path)
    by_file: dict[Path, list[TensorInfo]] = {}
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) == 2:
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
    with LLM(path, Options(max_resident=0)) as llm:
        for piece in llm.stream([0], params):
            log = piece.stats.log
            if time.perf_counter() - begin > STREAM_SECONDS:
                break
        typical = statistics.median(totals.seconds for totals in log[1:] or log)
        layers = llm.config.num_hidden_layers
        return Timing(llm.weights.pass_bytes // layers, typical / layers)


def forecast(timing: Timing, ceiling: int) -> Forecast:
    """A token of the whole model in a process of at most `ceiling` bytes, with its weights read as fast as `timing`'s.

    Raises MemoryCeilingError, which names the least that works.
    """
    config, kernels = parse_config(shape_config(SHAPE), SHAPE), Kernels()
    budget = Budget(
        config=config,
        weights=2 * pass_weights(config),
        ceiling=ceiling,
        process=machine.footprint().nbytes,
        scratch=kernels.scratch_bytes * kernels.threads,
    )
    compute = measure_compute(kernels)
    rates = Rates(timing.bytes_per_second, compute.row_bytes_per_second, compute.flops_per_second)
    kv = KvShape.of(config, config.num_hidden_layers, "bf16").bytes_for(CONTEXT)
    return forecast_token(budget.plan(Demand(kv=kv)), rates)


def _make(out: Path, config: Mapping[str, Any], on_progress: Callable[[int, int], None] | None) -> None:
    begin = time.perf_counter()

    def check(done: int, total: int) -> None:
        if done > total // 8 and (time.perf_counter() - begin) * total / done > MAKE_SECONDS:
            raise TooSlowError(
                f"Making layers would take more than {MAKE_SECONDS:.0f} s on this disk.",
                "Let PENSTOCK_HOME name a directory on a faster one.",
            )
        if on_progress:
            on_progress(done, total)

    synthesize(config, out, tokenizer=False, shard_bytes=_layer_file_bytes(config), on_progress=check)


def _layer_file_bytes(config: Mapping[str, Any]) -> int:
    """A size that makes shards of a layer each; the embedding goes with the first, norm and head with the last."""
    [whole] = plan_shards(parse_config({**config, "num_hidden_layers": 1}, "the layers' config"), 1 << 62)
    return whole.data_bytes


def _load_and_run(file: Path, tensors: list[TensorInfo], kernels: Kernels) -> None:
    """The file is out of the page cache before and after."""
    with file.open("rb", buffering=0) as opened:
        _drop_pages(opened.fileno())
        data = np.empty(os.fstat(opened.fileno()).st_size, np.uint8)
        done = 0
        while done < len(data):  # one call reads at most 2 GiB
            done += opened.readinto(data[done:].data)
        for tensor in tensors:
            n_out, n_in = tensor.shape
            x, out = np.ones((1, n_in), np.float32), np.empty((1, n_out), np.float32)
            kernels.matmul(x, data[tensor.begin : tensor.end], tensor.dtype.value, out)
        _drop_pages(opened.fileno())


def _drop_pages(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _own_directory(folder: Path) -> Iterator[Path]:
    try:
        own = tempfile.TemporaryDirectory(prefix=".penstock-demo-", dir=folder)
    except OSError as error:
        raise PenstockError(
            f"{folder} cannot be written: {error.strerror or error}.",
            "Let PENSTOCK_HOME name a directory that you may write to.",
        ) from error
    with own as name:
        yield Path(name)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let what usually kills a process at once leave time to delete."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
