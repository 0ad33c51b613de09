"""What this machine can do, measured beside no other work: bytes a second of its disk, arithmetic of its CPU.

Both probes take memory of their own and have given it back when they return.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from penstock.compute import codec
from penstock.compute.levels import CoarseChunks, CoarseRows, NibbleRows
from penstock.disk.files import ALIGNMENT, Extent, Files, aligned_buffer
from penstock.disk.new_files import settle, write_through
from penstock.errors import PenstockError
from penstock.memory.budget import allowance
from penstock.stages.rates import ComputeSpeed
from penstock.system.sizes import MIB

if TYPE_CHECKING:
    from penstock.compute.codec import PackedRows
    from penstock.compute.kernels import F32, I64, U8, Kernels
    from penstock.memory.budget import Budget

W = TypeVar("W")

PROBE_FILE_BYTES = 512 * 10**6
"""What is written where there is no model yet."""
PROBE_BYTES = 4 * 10**9
READ_BYTES = 16 * MIB
LEAST_READ_BYTES = MIB
READS_AT_ONCE = 8

WEIGHT_BYTES = 56 * MIB
"""Weights of the compute probe: more than the cache that a laptop's cores share."""
COLUMNS = 4096
SLICE_BYTES = 4 * MIB
SLICE_ROWS = SLICE_BYTES // (2 * COLUMNS)
BESIDE_BYTES = 4 * MIB
"""What the compute probe takes beside its weights: rows, and numbers on their way to be packed."""
MANY_ROWS = 64
"""Rows from which on the matrix product is bound by arithmetic, not by the weights' way from memory."""
FEW_ROWS = 8
"""Rows of a drafting step that asks about many nodes at once."""
PROBE_SECONDS = 0.1
SYNC_BYTES = 32 * MIB
"""Of the probe's file: brought to the disk a few at a time, so that they take little of the page cache."""


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """`nbytes` bytes of direct reads of at most `read_bytes` each took `seconds` seconds."""

    nbytes: int
    seconds: float
    read_bytes: int

    @property
    def bytes_per_second(self) -> float:
        """Read in a second, by all threads together."""
        return self.nbytes / self.seconds


@dataclass(frozen=True, slots=True)
class DraftSpeed:
    """Weights that one row, and FEW_ROWS rows together, get through in a second, by what drafts are made with."""

    coarse_row: float
    """By the coarse tier of packed weights."""
    coarse_few_rows: float
    nibble_row: float
    """By 4-bit weights."""
    nibble_few_rows: float

    def coarse_seconds(self, weights: int, rows: int) -> float:
        """Of so many rows, and weights by their coarse tier."""
        return seconds_of_rows(rows, weights / self.coarse_row, weights / self.coarse_few_rows, FEW_ROWS)

    def nibble_seconds(self, weights: int, rows: int) -> float:
        """Of so many rows, and 4-bit weights."""
        return seconds_of_rows(rows, weights / self.nibble_row, weights / self.nibble_few_rows, FEW_ROWS)


def seconds_of_rows(rows: int, one: float, many: float, n_many: int) -> float:
    """Seconds of so many rows, on the line through those of one row and of `n_many`, which does not fall."""
    return one + max(0.0, many - one) * (rows - 1) / (n_many - 1)


def room_for_probe(budget: Budget) -> int:
    """Bytes that a probe may take within a model's ceiling, before the model's first pass."""
    return budget.ceiling - budget.process - budget.scratch - allowance(budget.ceiling)


def measure_disk(
    paths: Sequence[Path], nbytes: int = PROBE_BYTES, *, seconds: float = math.inf, memory: float = math.inf
) -> DiskSpeed:
    """Direct reads of the given files, one file after another and all again until they are `nbytes`: READ_BYTES each,
    READS_AT_ONCE at a time.

    No read begins after `seconds`. With less than their 128 MiB of `memory` the reads are smaller, down to
    LEAST_READ_BYTES each. Raises ReadError.
    """
    fitting = int(min(READ_BYTES, memory // READS_AT_ONCE - ALIGNMENT)) // ALIGNMENT * ALIGNMENT
    read_bytes = max(LEAST_READ_BYTES, fitting)
    reads = planned_reads(paths, nbytes, read_bytes)
    buffers = [aligned_buffer(max((extent.nbytes for extent in reads), default=1)) for _ in range(READS_AT_ONCE)]
    files = Files()
    begin = time.perf_counter()

    def work(worker: int) -> int:
        done = 0
        try:
            with suppress(IndexError):  # no reads are left
                while time.perf_counter() - begin < seconds:
                    done += files.read(reads.popleft(), buffers[worker]).nbytes
        finally:
            reads.clear()  # where one fails, the others stop too
        return done

    try:
        with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="penstock-probe") as threads:
            try:
                done = sum(threads.map(work, range(READS_AT_ONCE)))
            finally:
                reads.clear()  # so does Ctrl-C, which reaches this thread alone
        return DiskSpeed(done, time.perf_counter() - begin, read_bytes)
    finally:
        files.close()


def measure_compute(kernels: Kernels, seconds: float = PROBE_SECONDS, *, memory: float = math.inf) -> ComputeSpeed:
    """Matrix products of one row and of MANY_ROWS rows, each for about `seconds`, with WEIGHT_BYTES of raw weights, and
    with as many packed and indexed ones.

    With less than their 60 MiB of `memory` there are fewer weights, down to SLICE_BYTES, and more of them are cached.
    """
    n_slices = _weight_bytes(memory) // SLICE_BYTES

    def speed(slices: Sequence[W], product: Callable[[F32, W, F32], None]) -> tuple[float, float]:
        one, many = (_weights_per_second(slices, SLICE_ROWS, product, rows, seconds) for rows in (1, MANY_ROWS))
        return 2 * one, 2 * MANY_ROWS * many

    # Each kind of weights is gone before the next is made.
    raw = speed(_raw_slices(n_slices), lambda x, weights, out: kernels.matmul(x, weights, "BF16", out))
    packed = speed(_packed_slices(n_slices), kernels.matmul_packed)
    plain = _decoded(packed_slice())
    indexed = [kernels.index(plain, SLICE_ROWS, COLUMNS) for _ in range(n_slices)]
    rate = _weights_per_second(indexed, SLICE_ROWS, kernels.matmul_indexed, 1, seconds)
    return ComputeSpeed(*raw, *packed, rate * indexed[0].data.nbytes / (SLICE_ROWS * COLUMNS))


def measure_drafting(kernels: Kernels, seconds: float = PROBE_SECONDS, *, memory: float = math.inf) -> DraftSpeed:
    """Products of one row and of FEW_ROWS rows with what drafts are made with, each for about `seconds`; with as much
    memory as `measure_compute`."""

    def speed(tiled: Callable[[int], W], nbytes: int, product: Callable[[F32, W, F32], None]) -> tuple[float, float]:
        """With slices of about SLICE_BYTES, as many as there is memory for."""
        times = max(1, SLICE_BYTES // nbytes)
        slices = [tiled(times) for _ in range(max(1, _weight_bytes(memory) // (times * nbytes)))]
        n_out = times * SLICE_ROWS
        one, few = (_weights_per_second(slices, n_out, product, rows, seconds) for rows in (1, FEW_ROWS))
        return one, few

    packed = packed_slice()
    chunks = CoarseChunks(SLICE_ROWS, COLUMNS, packed.rows_per_chunk, [packed.coarse])
    coarse = CoarseRows(chunks, *kernels.coarse_levels(chunks))
    nibbles = kernels.quantize_nibbles(_decoded(packed), SLICE_ROWS, COLUMNS)
    del packed
    of_coarse = speed(partial(_tiled_coarse, coarse), chunks.nbytes, kernels.matmul_coarse)
    of_nibbles = speed(partial(_tiled_nibbles, nibbles), nibbles.data.nbytes, kernels.matmul_nibbles)
    return DraftSpeed(*of_coarse, *of_nibbles)


def _weight_bytes(memory: float) -> int:
    """What the weights of a probe of arithmetic may take."""
    return int(min(WEIGHT_BYTES, max(SLICE_BYTES, memory - BESIDE_BYTES)))


def _weights_per_second(
    slices: Sequence[W], n_out: int, product: Callable[[F32, W, F32], None], rows: int, seconds: float
) -> float:
    """How many weights so many rows get through, multiplied with one slice [n_out, COLUMNS] after another: by the
    median of products for so long, after one to warm up."""
    turns = cycle(slices)
    x, out = np.ones((rows, COLUMNS), np.float32), np.empty((rows, n_out), np.float32)
    product(x, next(turns), out)
    times: list[float] = []
    while not times or sum(times) < seconds:
        begin = time.perf_counter()
        product(x, next(turns), out)
        times.append(time.perf_counter() - begin)
    return n_out * COLUMNS / statistics.median(times)


def _raw_slices(n_slices: int) -> list[U8]:
    weights = aligned_buffer(n_slices * SLICE_BYTES)[: n_slices * SLICE_BYTES]
    weights.view(np.uint16)[:] = 0x3F80  # 1.0; pages that nobody wrote would all be one page, in the cache
    return list(weights.reshape(n_slices, SLICE_BYTES))


def packed_slice() -> PackedRows:
    """A slice of packed weights, which are as hard to pack as trained ones: Gaussian."""
    rows = codec.rows_per_chunk(COLUMNS)
    n_chunks, coarse_bytes = SLICE_ROWS // rows, codec.coarse_bytes(rows, COLUMNS)
    coarse = np.empty(n_chunks * coarse_bytes, np.uint8)
    fine = np.empty(n_chunks * codec.most_fine_bytes(rows, COLUMNS), np.uint8)
    offsets = np.zeros(n_chunks + 1, np.int64)
    random = np.random.default_rng(0)
    for i in range(n_chunks):
        weights = random.standard_normal((rows, COLUMNS), np.float32).view(np.uint16)[:, 1::2]  # the upper halves
        raw = np.ascontiguousarray(weights).reshape(-1).view(np.uint8)
        chunk = coarse[i * coarse_bytes : (i + 1) * coarse_bytes]
        offsets[i + 1] = offsets[i] + codec.encode(raw, rows, COLUMNS, chunk, fine[offsets[i] :])
    return _packed(rows, coarse, fine[: offsets[-1]].copy(), offsets)


def _packed_slices(n_slices: int) -> list[PackedRows]:
    first = packed_slice()
    return [first, *(_copied(first) for _ in range(n_slices - 1))]


def _decoded(packed: PackedRows) -> U8:
    plain = np.empty(SLICE_BYTES, np.uint8)
    codec.decode(packed, 0, SLICE_ROWS, plain)
    return plain


def _copied(packed: PackedRows) -> PackedRows:
    return _packed(packed.rows_per_chunk, packed.coarse.copy(), packed.fine.copy(), packed.fine_offsets)


def _packed(rows_per_chunk: int, coarse: U8, fine: U8, fine_offsets: I64) -> PackedRows:
    return codec.PackedRows(
        rows=SLICE_ROWS,
        cols=COLUMNS,
        rows_per_chunk=rows_per_chunk,
        coarse=coarse,
        fine=fine,
        fine_offsets=fine_offsets,
    )


def _tiled_coarse(rows: CoarseRows, times: int) -> CoarseRows:
    """The same rows so many times over, in memory of their own."""
    coarse = [np.concatenate([*rows.chunks.arrays] * times)]
    chunks = CoarseChunks(rows.rows * times, rows.cols, rows.chunks.rows_per_chunk, coarse)
    return CoarseRows(chunks, np.tile(rows.magnitudes, (times, 1)), np.tile(rows.scales, times))


def _tiled_nibbles(rows: NibbleRows, times: int) -> NibbleRows:
    """The same, of weights of 4 bits."""
    return NibbleRows(rows.rows * times, rows.cols, np.tile(rows.data, times), np.tile(rows.scales, times))


@contextmanager
def probe_file(folder: Path, nbytes: int) -> Iterator[Path]:
    """A file of at most `nbytes` random bytes on the disk of `folder` (a directory that may not exist yet), written
    through to it, and deleted in the end. It takes no more than half of what is free there.

    Raises PenstockError where there is no room for any, or it cannot be written.
    """
    folder = next(place for place in (folder, *folder.parents) if place.is_dir())
    try:
        n_mib = min(nbytes, shutil.disk_usage(folder).free // 2) // MIB
        if not n_mib:
            raise PenstockError(
                f"{folder} has no room for a file that its disk's speed could be measured with.",
                "Free some space, or let PENSTOCK_HOME name a directory on another disk.",
            )
        with tempfile.TemporaryDirectory(prefix=".penstock-probe-", dir=folder) as own:
            path = Path(own) / "random"
            random = memoryview(os.urandom(MIB))
            with path.open("wb", buffering=0) as file:
                for _ in range(n_mib):
                    write_through(file, random, SYNC_BYTES)
                settle(file)
            yield path
    except OSError as error:
        raise PenstockError(
            f"{folder}: the speed of its disk cannot be measured: {error.strerror or error}.",
            "Let PENSTOCK_HOME name a directory that you may write to.",
        ) from error


def planned_reads(paths: Sequence[Path], nbytes: int, read_bytes: int) -> deque[Extent]:
    """Reads of the files, one after another and all again, of at most `read_bytes` each and `nbytes` in all."""
    once = [
        Extent(path, offset, min(read_bytes, size - offset))
        for path in paths
        for size in [path.stat().st_size]
        for offset in range(0, size, read_bytes)
    ]
    reads: deque[Extent] = deque()
    planned = 0
    for extent in cycle(once):
        if planned >= nbytes:
            break
        reads.append(extent)
        planned += extent.nbytes
    return reads
