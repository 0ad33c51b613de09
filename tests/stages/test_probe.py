from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from helpers.checkpoints import to_float32
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.compute.codec import PackedRows, decode
from penstock.compute.indexed import IndexedRows
from penstock.compute.kernels import F32, U8, Kernels
from penstock.compute.levels import BLOCK, CoarseChunks, CoarseRows, NibbleRows, nibble_bytes
from penstock.disk.files import Extent, Files, buffer_bytes
from penstock.errors import PenstockError, ReadError
from penstock.memory.budget import Budget
from penstock.stages import probe
from penstock.stages.probe import (
    FEW_ROWS,
    LEAST_READ_BYTES,
    READ_BYTES,
    READS_AT_ONCE,
    SLICE_BYTES,
    DraftSpeed,
    measure_compute,
    measure_disk,
    measure_drafting,
    probe_file,
    room_for_probe,
)
from penstock.synth.shapes import shape_config

MIB = 1 << 20


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Extent, int, int]]:
    """Every read with the size of its buffer and the thread, instead of what is read."""
    seen = []

    def read(self: Files, extent: Extent, buffer: U8) -> U8:
        seen.append((extent, len(buffer), threading.get_ident()))
        return buffer[: extent.nbytes]

    monkeypatch.setattr(Files, "read", read)
    return seen


def sparse(path: Path, nbytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(nbytes)
    return path


def extents(reads: list[tuple[Extent, int, int]]) -> list[tuple[str, int, int]]:
    order = [(extent.path.name, extent.offset, extent.nbytes) for extent, _, _ in reads]
    return sorted(order)


class TestDisk:
    def test_large_reads_of_every_file(self, tmp_path: Path, reads: list[Any]) -> None:
        paths = [sparse(tmp_path / "a", 2 * READ_BYTES + 5), sparse(tmp_path / "b", 7)]
        measured = measure_disk(paths, 2 * READ_BYTES + 12)
        assert extents(reads) == [
            ("a", 0, READ_BYTES),
            ("a", READ_BYTES, READ_BYTES),
            ("a", 2 * READ_BYTES, 5),
            ("b", 0, 7),
        ]
        assert measured.nbytes == 2 * READ_BYTES + 12
        assert measured.bytes_per_second == measured.nbytes / measured.seconds > 0

    def test_small_files_are_read_again(self, tmp_path: Path, reads: list[Any]) -> None:
        paths = [sparse(tmp_path / "a", 1000), sparse(tmp_path / "b", 500)]
        assert measure_disk(paths, 4000).nbytes == 4000
        assert extents(reads) == [("a", 0, 1000)] * 3 + [("b", 0, 500)] * 2

    def test_so_many_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        all_there = threading.Barrier(READS_AT_ONCE, timeout=30)

        def read(self: Files, extent: Extent, buffer: U8) -> U8:
            all_there.wait()
            return buffer[: extent.nbytes]

        monkeypatch.setattr(Files, "read", read)
        measure_disk([sparse(tmp_path / "a", 100)], 100 * READS_AT_ONCE)

    @pytest.mark.parametrize("memory", [20 * MIB, 64 * MIB, 129 * MIB])
    def test_little_memory_makes_the_reads_smaller(self, tmp_path: Path, reads: list[Any], memory: int) -> None:
        measure_disk([sparse(tmp_path / "a", 64 * MIB)], 64 * MIB, memory=memory)
        buffers = {size for _, size, _ in reads}
        assert len(buffers) == 1
        assert LEAST_READ_BYTES < READS_AT_ONCE * buffers.pop() <= memory
        assert sum(extent.nbytes for extent, _, _ in reads) == 64 * MIB

    def test_reads_do_not_shrink_without_end(self, tmp_path: Path, reads: list[Any]) -> None:
        measure_disk([sparse(tmp_path / "a", 4 * MIB)], 4 * MIB, memory=-5)
        assert {size for _, size, _ in reads} == {buffer_bytes(LEAST_READ_BYTES)}

    def test_no_read_begins_when_the_time_is_up(self, tmp_path: Path, reads: list[Any]) -> None:
        assert measure_disk([sparse(tmp_path / "a", MIB)], 10**9, seconds=0).nbytes == 0
        assert reads == []

    @pytest.mark.filterwarnings("ignore::penstock.disk.files.DirectReadWarning")
    def test_a_file_that_shrinks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = sparse(tmp_path / "a", 10_000)
        real_reads = probe.planned_reads

        def planned(*arguments: Any) -> Any:
            found = real_reads(*arguments)
            sparse(path, 10)
            return found

        monkeypatch.setattr(probe, "planned_reads", planned)
        with pytest.raises(ReadError, match="the file ends there"):
            measure_disk([path], 10_000)

    def test_one_that_fails_ends_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        count, failed = itertools.count(), threading.Event()

        def read(self: Files, extent: Extent, buffer: U8) -> U8:
            if next(count) == READS_AT_ONCE - 1:
                failed.set()
                raise ReadError("no", "yes")
            assert failed.wait(30)
            return buffer[: extent.nbytes]

        monkeypatch.setattr(Files, "read", read)
        with pytest.raises(ReadError):
            measure_disk([sparse(tmp_path / "a", 1)], 100_000)
        assert next(count) < 50_000

    def test_the_size_of_the_reads(self, tmp_path: Path, reads: list[Any]) -> None:
        path = sparse(tmp_path / "a", 64 * MIB)
        assert measure_disk([path], 64 * MIB).read_bytes == READ_BYTES
        assert measure_disk([path], 64 * MIB, memory=-5).read_bytes == LEAST_READ_BYTES
        reads.clear()
        less = measure_disk([path], 64 * MIB, memory=64 * MIB).read_bytes
        assert less == max(extent.nbytes for extent, _, _ in reads)


class CountingKernels:
    """A CPU that does FLOPS multiplications and additions a second, or gets BANDWIDTH bytes of weights, on a clock of
    its own; half as much with packed ones, thrice as many bytes with indexed ones."""

    FLOPS, BANDWIDTH = 10**9, 4 * 10**9

    def __init__(self) -> None:
        self.now = 0.0
        self.weights: set[int] = set()
        self.packed: dict[int, PackedRows] = {}

    def perf_counter(self) -> float:
        return self.now

    def matmul(self, x: F32, weight: U8, dtype: str, out: F32) -> None:
        rows, columns = x.shape
        n = len(weight) // (2 * columns)
        assert (dtype, out.shape) == ("BF16", (rows, n))
        self.weights.add(weight.ctypes.data)
        self.now += len(weight) / self.BANDWIDTH if rows == 1 else 2 * rows * n * columns / self.FLOPS

    def matmul_packed(self, x: F32, packed: PackedRows, out: F32) -> None:
        rows, n = out.shape
        assert x.shape == (rows, packed.cols)
        assert n == packed.rows
        self.packed[packed.fine.ctypes.data] = packed
        seconds = 2 * n * packed.cols / self.BANDWIDTH if rows == 1 else 2 * rows * n * packed.cols / self.FLOPS
        self.now += 2 * seconds

    def index(self, weights: U8, rows: int, cols: int) -> IndexedRows:
        assert len(weights) == 2 * rows * cols
        return IndexedRows(rows, cols, np.zeros(len(weights) * 3 // 4, np.uint8))

    def matmul_indexed(self, x: F32, indexed: IndexedRows, out: F32) -> None:
        assert out.shape == (1, indexed.rows)
        self.now += indexed.data.nbytes / (3 * self.BANDWIDTH)


class DraftingKernels(CountingKernels):
    """Gets through COARSE weights a second by their coarse tier, or NIBBLES of 4 bits; a row more costs a tenth."""

    COARSE, NIBBLES = 10**9, 2 * 10**9

    def __init__(self) -> None:
        super().__init__()
        self.coarse: dict[int, U8] = {}
        self.nibbles: dict[int, U8] = {}
        self.rows: set[int] = set()

    def coarse_levels(self, chunks: CoarseChunks) -> tuple[U8, F32]:
        return np.zeros((chunks.rows, 4), np.uint8), np.zeros(chunks.rows, np.float32)

    def quantize_nibbles(self, weights: U8, rows: int, cols: int) -> NibbleRows:
        assert len(weights) == 2 * rows * cols
        return NibbleRows(rows, cols, np.zeros(rows * cols // 2, np.uint8), np.zeros(rows * cols // BLOCK, np.float32))

    def matmul_coarse(self, x: F32, coarse: CoarseRows, out: F32) -> None:
        assert coarse.magnitudes.shape == (coarse.rows, 4)
        assert coarse.scales.shape == (coarse.rows,)
        [chunks] = coarse.chunks.arrays
        assert chunks.nbytes >= coarse.rows * coarse.cols * 3 / 8
        self.coarse[chunks.ctypes.data] = chunks
        self._count(x, coarse, out, self.COARSE)

    def matmul_nibbles(self, x: F32, nibbles: NibbleRows, out: F32) -> None:
        assert nibbles.data.nbytes == nibble_bytes(nibbles.rows, nibbles.cols) - nibbles.scales.nbytes
        self.nibbles[nibbles.data.ctypes.data] = nibbles.data
        self._count(x, nibbles, out, self.NIBBLES)

    def _count(self, x: F32, weights: CoarseRows | NibbleRows, out: F32, rate: float) -> None:
        rows, n = out.shape
        assert x.shape == (rows, weights.cols)
        assert n == weights.rows
        self.rows.add(rows)
        self.now += n * weights.cols / rate * (1 + (rows - 1) / 10)


class TestDrafting:
    @pytest.mark.parametrize(
        ("memory", "most"), [(math.inf, 56 * MIB), (60 * MIB, 56 * MIB), (25 * MIB, 21 * MIB), (-5, 4 * MIB)]
    )
    def test_weights_are_counted(self, monkeypatch: pytest.MonkeyPatch, memory: float, most: int) -> None:
        kernels = DraftingKernels()
        monkeypatch.setattr(probe, "time", kernels)
        speed = measure_drafting(cast("Kernels", kernels), seconds=10, memory=memory)
        assert kernels.rows == {1, FEW_ROWS}
        expected = (1e9, 1e9 / 1.7, 2e9, 2e9 / 1.7)
        assert astuple(speed) == pytest.approx(expected)
        for slices in (kernels.coarse, kernels.nibbles):
            nbytes = sum(each.nbytes for each in slices.values())
            assert most - 6 * MIB < nbytes <= most

    def test_seconds_lie_on_a_line(self) -> None:
        speed = DraftSpeed(coarse_row=100.0, coarse_few_rows=50.0, nibble_row=10.0, nibble_few_rows=20.0)
        assert [speed.coarse_seconds(1000, rows) for rows in (1, FEW_ROWS, 2 * FEW_ROWS - 1)] == [10.0, 20.0, 30.0]
        # More rows never take less: what was measured so was chance.
        assert [speed.nibble_seconds(1000, rows) for rows in (1, 4, FEW_ROWS)] == [100.0, 100.0, 100.0]

    def test_with_real_kernels(self) -> None:
        assert all(rate > 0 for rate in astuple(measure_drafting(Kernels(1), seconds=0, memory=0)))


class TestCompute:
    @pytest.mark.parametrize(
        ("memory", "weights"), [(math.inf, 56 * MIB), (60 * MIB, 56 * MIB), (25 * MIB, 20 * MIB), (-5, 4 * MIB)]
    )
    def test_bytes_and_operations_are_counted(
        self, monkeypatch: pytest.MonkeyPatch, memory: float, weights: int
    ) -> None:
        kernels = CountingKernels()
        monkeypatch.setattr(probe, "time", kernels)
        speed = measure_compute(cast("Kernels", kernels), seconds=1, memory=memory)
        assert speed.row_bytes_per_second == pytest.approx(kernels.BANDWIDTH)
        assert speed.flops_per_second == pytest.approx(kernels.FLOPS)
        assert speed.packed_row_bytes_per_second == pytest.approx(kernels.BANDWIDTH / 2)
        assert speed.packed_flops_per_second == pytest.approx(kernels.FLOPS / 2)
        assert speed.indexed_row_bytes_per_second == pytest.approx(3 * kernels.BANDWIDTH)
        assert len(kernels.weights) * SLICE_BYTES == len(kernels.packed) * SLICE_BYTES == weights

    def test_packed_weights_are_gaussian(self) -> None:
        packed = probe.packed_slice()
        assert 2 * packed.rows * packed.cols == SLICE_BYTES
        assert (packed.coarse.nbytes + packed.fine.nbytes) / SLICE_BYTES == pytest.approx(0.67, abs=0.01)
        weights = np.empty(SLICE_BYTES, np.uint8)
        decode(packed, 0, packed.rows, weights)
        values = to_float32(weights.view(np.uint16))
        assert abs(values.mean()) < 0.01
        assert values.std() == pytest.approx(1, abs=0.01)

    def test_with_real_kernels(self) -> None:
        assert all(rate > 0 for rate in astuple(measure_compute(Kernels(1), seconds=0)))


def test_room_within_a_ceiling() -> None:
    config = parse_config(shape_config("smollm2-135m"), "shape")
    budget = Budget(
        architecture=Architecture(config), weights=10**9, ceiling=1 << 30, process=100 * MIB, scratch=8 * MIB
    )
    assert room_for_probe(budget) == (1024 - 100 - 8 - 24 - 4) * MIB


class TestProbeFile:
    def test_it_is_there_for_as_long_as_it_is_used(self, tmp_path: Path) -> None:
        with probe_file(tmp_path, 2 * MIB + 5) as path:
            assert path.stat().st_size == 2 * MIB
            assert path.is_relative_to(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_it_goes_when_the_measurement_fails(self, tmp_path: Path) -> None:
        with pytest.raises(ReadError), probe_file(tmp_path, MIB):
            raise ReadError("no", "yes")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_yet_is_not_made(self, tmp_path: Path) -> None:
        with probe_file(tmp_path / "store" / "models", MIB) as path:
            assert path.is_relative_to(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_half_of_the_room_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * MIB))
        with probe_file(tmp_path, 100 * MIB) as path:
            assert path.stat().st_size == 2 * MIB

    def test_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=MIB))
        with pytest.raises(PenstockError) as caught, probe_file(tmp_path, MIB):
            pass
        assert (
            caught.value.problem == f"{tmp_path} has no room for a file that its disk's speed could be measured with."
        )
        assert "PENSTOCK_HOME" in caught.value.remedy

    @pytest.mark.parametrize("where", [(tempfile, "TemporaryDirectory"), (os, "fsync")])
    def test_a_disk_that_does_not_want_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
    ) -> None:
        monkeypatch.setattr(*where, _refuse(PermissionError(13, "Permission denied")))
        with pytest.raises(PenstockError) as caught, probe_file(tmp_path, MIB):
            pass
        assert caught.value.problem == f"{tmp_path}: the speed of its disk cannot be measured: Permission denied."
        assert caught.value.remedy == "Let PENSTOCK_HOME name a directory that you may write to."
        assert list(tmp_path.iterdir()) == []


def _refuse(error: OSError) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse
