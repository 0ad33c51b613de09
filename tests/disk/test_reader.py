from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.thorough import examples
from penstock.compute.kernels import U8
from penstock.disk.files import Extent, Files, aligned_buffer, buffer_bytes
from penstock.disk.reader import ReadAhead
from penstock.disk.urgent_first import UrgentFirst
from penstock.errors import ReadError

CONTENT = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "data"
    path.write_bytes(CONTENT.tobytes())
    return path


@pytest.fixture
def files() -> Iterator[Files]:
    files = Files()
    yield files
    files.close()


class Immediate:
    """An executor that is done when `submit` returns, so that the order of reads is that of their submission."""

    def submit(self, work: Callable[[], Any], urgent: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


class Recording(Files):
    """Files that note the offsets of reads; those of `broken` fail."""

    def __init__(self, broken: Sequence[int] = ()) -> None:
        super().__init__()
        self.offsets: list[int] = []
        self.broken = set(broken)

    def read(self, extent: Extent, buffer: U8) -> U8:
        self.offsets.append(extent.offset)
        if extent.offset in self.broken:
            raise ReadError("broken", "mend it")
        return super().read(extent, buffer)


def extents_of(path: Path, sizes: Sequence[int]) -> list[Extent]:
    ends = np.cumsum(sizes).tolist()
    return [Extent(path, end - size, size) for end, size in zip(ends, sizes, strict=True)]


def content(extent: Extent) -> bytes:
    return CONTENT[extent.offset : extent.offset + extent.nbytes].tobytes()


def immediate(files: Files, extents: Sequence[Extent], depth: int, skip: Sequence[int] = ()) -> ReadAhead:
    reader = ReadAhead(files, extents, set(skip).__contains__, depth)
    reader._threads.shutdown()
    reader._threads = Immediate()  # type: ignore[assignment]
    return reader


class TestReadAhead:
    SIZES = (100, 30, 1, 250, 64, 7, 99)

    def test_reads_run_ahead_in_cyclic_order(self, path: Path) -> None:
        files, extents = Recording(), extents_of(path, self.SIZES)
        reader = immediate(files, extents, depth=3)
        for index in (*range(7), *range(7), 0, 1):
            data = reader.take(index)
            assert data.tobytes() == content(extents[index])
            reader.give_back(data)
        cycle = [extent.offset for extent in extents]
        assert files.offsets == (cycle * 3)[: 16 + 3]
        assert reader.totals.bytes_read == 2 * sum(self.SIZES) + 130
        assert reader.totals.read_seconds > 0
        assert reader.totals.wait_seconds > 0

    def test_depth_bounds_what_runs_ahead(self, path: Path) -> None:
        files, extents = Recording(), extents_of(path, self.SIZES)
        reader = immediate(files, extents, depth=4)
        assert reader.ring_bytes == 4 * buffer_bytes(250)
        held = [reader.take(0)]
        assert len(files.offsets) == 4  # the one that was asked for, and one in each of the other buffers
        held.append(reader.take(1))
        assert len(files.offsets) == 4
        reader.give_back(held[0])
        assert len(files.offsets) == 5

    def test_what_is_skipped_is_not_read(self, path: Path) -> None:
        files, extents = Recording(), extents_of(path, self.SIZES)
        reader = immediate(files, extents, depth=2, skip=(1, 2, 5))
        for index in (0, 3, 4, 6, 0, 3):
            reader.give_back(reader.take(index))
        cycle = [extents[index].offset for index in (0, 3, 4, 6)]
        assert files.offsets == (cycle * 2)[:8]

    def test_what_becomes_skipped_is_dropped(self, path: Path) -> None:
        files, extents, skipped = Recording(), extents_of(path, self.SIZES), set()
        reader = immediate(files, extents, depth=3)
        reader._skip = skipped.__contains__
        reader.give_back(reader.take(0))
        skipped |= {1, 2}
        data = reader.take(3)
        assert data.tobytes() == content(extents[3])

    @pytest.mark.parametrize("index", [5, 3, 0])
    def test_out_of_turn(self, path: Path, files: Files, index: int) -> None:
        extents = extents_of(path, self.SIZES)
        reader = ReadAhead(files, extents, lambda _: False, 3)
        reader.give_back(reader.take(0))
        for step in range(8):
            wanted = (index + step) % 7
            data = reader.take(wanted)
            assert data.tobytes() == content(extents[wanted])
            reader.give_back(data)
        reader.close()

    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_an_error_is_told_when_its_extent_is_taken_and_leaves_the_ring_whole(self, path: Path, depth: int) -> None:
        extents = extents_of(path, self.SIZES)
        files = Recording(broken=[extents[2].offset])
        reader = ReadAhead(files, extents, lambda _: False, depth)
        for index in (0, 1):
            reader.give_back(reader.take(index))
        for _ in range(3):
            with pytest.raises(ReadError, match="broken"):
                reader.take(2)
        files.broken.clear()
        for index in (2, 3, 4, 5, 6, 0):
            data = reader.take(index)
            assert data.tobytes() == content(extents[index])
            reader.give_back(data)
        reader._drain()
        assert len(reader._free) == depth
        reader.close()

    def test_a_truncated_file(self, tmp_path: Path, files: Files) -> None:
        path = tmp_path / "x"
        path.write_bytes(CONTENT[:150].tobytes())
        reader = ReadAhead(files, extents_of(path, (100, 100)), lambda _: False, 2)
        reader.give_back(reader.take(0))
        with pytest.raises(ReadError, match="offset 150 failed: the file ends there"):
            reader.take(1)
        reader.close()

    @pytest.mark.parametrize("held", [1, 3])
    def test_a_pass_that_was_broken_off_leaves_the_ring_whole(self, path: Path, files: Files, held: int) -> None:
        """Its arrays may still be given back later, once others use their buffers."""
        extents = extents_of(path, self.SIZES)
        reader = ReadAhead(files, extents, lambda _: False, 4)
        stale = [reader.take(index) for index in range(held)]
        reader._free[:1] = []  # as if Ctrl-C had come between two lines
        reader.recover()
        taken = [reader.take(index) for index in range(4)]
        for data in stale:
            reader.give_back(data)
        for index, data in enumerate(taken):
            assert data.tobytes() == content(extents[index])
            reader.give_back(data)
            reader.give_back(data)
        for index in (4, 5, 6, 0, 1):
            data = reader.take(index)
            assert data.tobytes() == content(extents[index])
            reader.give_back(data)
        reader._drain()
        assert len(reader._free) == 4
        reader.close()

    def test_filling_begins_with_the_first_that_is_streamed(self, path: Path) -> None:
        files, extents = Recording(), extents_of(path, self.SIZES)
        reader = immediate(files, extents, depth=3, skip=(0, 1))
        assert reader.fill()[0] == sum(self.SIZES[2:5])
        assert reader.fill()[0] == 0, "the ring was full"
        for index in (2, 3, 4):
            reader.give_back(reader.take(index))
        assert reader.fill()[0] == sum(self.SIZES[2:5]), "the ring held the end of a pass that was broken off"
        assert [pending.index for pending in reader._pending] == [2, 3, 4]

    def test_the_last_one_that_is_streamed_is_read_ahead_too(self, path: Path) -> None:
        files, extents = Recording(), extents_of(path, self.SIZES)
        reader = immediate(files, extents, depth=2, skip=(0, 1, 2, 4, 5, 6))
        reader.give_back(reader.take(3))
        assert [pending.index for pending in reader._pending] == [3, 3]

    def test_nothing_to_read(self, files: Files) -> None:
        reader = ReadAhead(files, [], lambda _: False, 4)
        assert reader.ring_bytes == 4 * buffer_bytes(0)
        reader.close()

    def test_closing_waits_for_reads_and_ends_the_threads(self, path: Path, files: Files) -> None:
        before = threading.active_count()
        reader = ReadAhead(files, extents_of(path, self.SIZES), lambda _: False, 4)
        reader.give_back(reader.take(0))
        reader._drain()
        assert len(reader._free) == 4
        reader.close()
        reader.close()
        assert threading.active_count() == before
        assert reader._free == [], "the ring outlives its reader"


class TestDemand:
    """What is asked for comes before what the sequence reads ahead, and neither lane starves the other."""

    SIZES = (100, 30, 1, 250, 64, 7, 99, 11)
    SEQUENCE = (0, 1, 6, 7)

    def two_lanes(self, files: Files, path: Path, depth: int = 4, left: int = 1) -> ReadAhead:
        extents = extents_of(path, self.SIZES)
        reader = ReadAhead(files, extents, lambda _: False, depth, demanded=left)
        reader.follow(self.SEQUENCE)
        return reader

    def test_the_sequence_leaves_them_out(self, path: Path) -> None:
        files = Recording()
        reader = immediate(files, extents_of(path, self.SIZES), depth=3)
        reader.follow(self.SEQUENCE)
        for index in (0, 1, 6, 7, 0, 1):
            reader.give_back(reader.take(index))
        cycle = [reader._extents[index].offset for index in self.SEQUENCE]
        assert files.offsets == (cycle * 3)[: 6 + 3]

    def test_taken_amid_the_sequence(self, path: Path, files: Files) -> None:
        reader = self.two_lanes(files, path)
        for _ in range(3):
            for index in (0, 1):
                reader.give_back(reader.take(index))
            reader.demand([2, 4, 5])
            for index in (2, 4, 5, 6, 7):
                data = reader.take(index)
                assert data.tobytes() == content(reader._extents[index])
                reader.give_back(data)
        assert reader.totals.bytes_read == 3 * sum(self.SIZES[i] for i in (0, 1, 2, 4, 5, 6, 7))
        reader.close()

    def test_the_sequence_passes_over_what_is_demanded(self, path: Path) -> None:
        """Also where it would come to it: nothing is read twice, before and after it is taken."""
        files = Recording()
        reader = ReadAhead(files, extents_of(path, self.SIZES), lambda _: False, 6, demanded=2)
        reader._threads.shutdown()
        reader._threads = Immediate()  # type: ignore[assignment]
        reader.give_back(reader.take(0))
        reader.demand([2, 3, 4, 5])
        for index in (2, 3, 4, 5, 6):
            reader.give_back(reader.take(index))
        first_cycle = files.offsets[: len(self.SIZES) + 3]
        counts = [first_cycle.count(reader._extents[index].offset) for index in (2, 3, 4, 5)]
        assert max(counts) <= 2  # those that were read ahead before they were demanded
        before = len(files.offsets)
        reader.demand([1, 2])
        reader.give_back(reader.take(1))
        reader.give_back(reader.take(2))
        again = [offset for offset in files.offsets[before:] if offset == reader._extents[2].offset]
        assert len(again) == 1
        reader.close()

    def test_more_than_there_are_buffers(self, path: Path, files: Files) -> None:
        reader = self.two_lanes(files, path)
        reader.demand([2, 3, 4, 5])
        shared = reader.take(0)  # of the sequence, amid the others
        for index in (2, 3, 4, 5):
            data = reader.take(index)
            assert data.tobytes() == content(reader._extents[index])
            reader.give_back(data)
        assert shared.tobytes() == content(reader._extents[0])
        reader.give_back(shared)
        reader.close()

    def test_what_is_not_taken_is_dropped(self, path: Path, files: Files) -> None:
        reader = self.two_lanes(files, path)
        reader.demand([2, 3, 4, 5])
        reader.demand([5, 3])
        for index in (5, 3, 0):
            data = reader.take(index)
            assert data.tobytes() == content(reader._extents[index])
            reader.give_back(data)
        reader.demand([2])
        reader.recover()
        reader._drain()
        assert len(reader._free) == 4
        assert reader._used == {False: 0, True: 0}
        reader.close()

    def test_an_error_leaves_the_ring_whole(self, path: Path) -> None:
        extents = extents_of(path, self.SIZES)
        files = Recording(broken=[extents[3].offset])
        reader = ReadAhead(files, extents, lambda _: False, 4, demanded=1)
        reader.follow(self.SEQUENCE)
        reader.demand([2, 3, 4])
        reader.give_back(reader.take(2))
        with pytest.raises(ReadError, match="broken"):
            reader.take(3)
        files.broken.clear()
        reader.demand([3, 4])
        for index in (3, 4, 0, 1):
            data = reader.take(index)
            assert data.tobytes() == content(extents[index])
            reader.give_back(data)
        reader._drain()
        assert len(reader._free) == 4
        reader.close()

    def test_urgent_work_is_begun_first(self) -> None:
        """Whatever waits already."""
        threads: UrgentFirst[int] = UrgentFirst(1, "test")
        go, done = threading.Event(), []
        first = threads.submit(lambda: (go.wait(), done.append("first"))[0] and 1)
        usual = [threads.submit(lambda i=i: done.append(f"usual {i}") or i) for i in range(3)]
        urgent = [threads.submit(lambda i=i: done.append(f"urgent {i}") or i, urgent=True) for i in range(2)]
        assert usual[1].cancel()
        go.set()
        threads.shutdown()
        assert done == ["first", "urgent 0", "urgent 1", "usual 0", "usual 2"]
        assert first.result() == 1
        assert [future.result() for future in urgent] == [0, 1]

    def test_what_work_raises_is_its_result(self) -> None:
        threads: UrgentFirst[float] = UrgentFirst(1, "test")
        broken, sound = threads.submit(lambda: 1 / 0), threads.submit(lambda: 2.0)
        with pytest.raises(ZeroDivisionError):
            broken.result()
        assert sound.result() == 2.0
        threads.shutdown()


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_two_lanes_never_mix(path: Path, data: Any) -> None:
    """Layer by layer: what the sequence has, some of the rest on demand; some kept, some held for a while."""
    layers, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    sizes = [data.draw(st.integers(1, 300)) for _ in range(layers * (count + 2))]
    files, extents = Files(), extents_of(path, sizes)
    kept: dict[int, U8] = {}

    def place(index: int) -> U8 | None:
        return aligned_buffer(sizes[index]) if index % 5 == 0 else None

    left = data.draw(st.integers(1, 2))
    reader = ReadAhead(files, extents, kept.__contains__, 2 * left + data.draw(st.integers(1, 3)), None, 3, place, left)
    reader.follow([layer * (count + 2) + part for layer in range(layers) for part in (0, 1)])
    for layer in [*range(layers)] * 3:
        begin = layer * (count + 2)
        wanted = sorted(data.draw(st.sets(st.integers(begin + 2, begin + count + 1), min_size=1)))
        reader.demand([index for index in wanted if index not in kept])
        for index in (begin, begin + 1, *wanted):
            if index in kept:
                continue
            array = reader.take(index)
            assert array.tobytes() == content(extents[index])
            if not reader.in_ring(array):
                kept[index] = array
            reader.give_back(array)
        for index, array in kept.items():
            assert array.tobytes() == content(extents[index])
    reader.close()
    files.close()


@settings(max_examples=examples(60))
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    depth=st.integers(1, 5),
    skipped=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_a_held_buffer_is_never_overwritten(
    path: Path, sizes: list[int], depth: int, skipped: set[int], data: Any
) -> None:
    """Whatever is taken, in turn and out of it, stays as it was until it is given back."""
    files, extents = Files(), extents_of(path, sizes)
    reader = ReadAhead(files, extents, skipped.__contains__, depth)
    held: list[tuple[int, U8]] = []
    index = 0
    for _ in range(25):
        if len(held) == depth or (held and data.draw(st.booleans())):
            taken, array = held.pop(data.draw(st.integers(0, len(held) - 1)))
            assert array.tobytes() == content(extents[taken])
            reader.give_back(array)
        else:
            if data.draw(st.integers(0, 4)) == 0:
                index = data.draw(st.integers(0, len(extents) - 1))
            held.append((index, reader.take(index)))
            index = (index + 1) % len(extents)
        for taken, array in held:
            assert array.tobytes() == content(extents[taken])
    reader.close()
    for taken, array in held:
        assert array.tobytes() == content(extents[taken])
    files.close()
