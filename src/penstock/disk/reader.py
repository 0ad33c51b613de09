"""Reading ahead: the next extents are in memory before they are asked for, in a ring of fixed size.

Two lanes share the ring and its threads: the *sequence*, what every pass takes in the same order, which is read as far
ahead as there are buffers; and *demand*, what somebody has just found out that it will take, which comes first.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from penstock.disk.files import aligned_buffer, buffer_bytes
from penstock.disk.urgent_first import UrgentFirst

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from penstock.compute.kernels import U8
    from penstock.disk.files import Extent, Files


@dataclass(frozen=True, slots=True)
class Ring:
    """How far the reader runs ahead: `depth` buffers, each for an extent of `piece_bytes`; `reads` of them at once.

    Where there are more buffers than reads, a read that ends is followed by the next without the consumer's help.
    """

    depth: int
    piece_bytes: int
    reads: int = 8

    @property
    def nbytes(self) -> int:
        return self.depth * buffer_bytes(self.piece_bytes)


@dataclass(slots=True)
class ReadTotals:
    """Running totals of a reader: bytes and seconds of the reads that were used, and seconds that they were waited
    for."""

    bytes_read: int = 0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0

    def count(self, nbytes: int, read_seconds: float, wait_seconds: float) -> None:
        self.bytes_read += nbytes
        self.read_seconds += read_seconds
        self.wait_seconds += wait_seconds


@dataclass(frozen=True, slots=True)
class _Pending:
    index: int
    buffer: U8
    in_ring: bool
    urgent: bool
    read: Future[tuple[U8, float]]
    """The extent's bytes, a part of the buffer, and the seconds that it took."""


class ReadAhead:
    """Extents in cyclic order, read ahead into a ring of buffers by a few threads; and others on demand.

    One thread calls `take` and `give_back`; each call starts the reads that the free buffers allow. Taking an extent
    out of turn is correct, and costs what was read ahead in vain.
    """

    def __init__(
        self,
        files: Files,
        extents: Sequence[Extent],
        skip: Callable[[int], bool],
        depth: int,
        on_read: Callable[[int, U8, float, float], None] | None = None,
        reads: int = 8,
        keep: Callable[[int], U8 | None] | None = None,
        demanded: int = 0,
    ) -> None:
        """`skip`: which extents nobody is going to take; `depth`: buffers, of which `reads` are being read into at
        once; `on_read`: told (index, data, begin, end) by reading threads, and what it raises, `take` raises; `keep`:
        where an extent is to be read that the caller is going to keep, else None; `demanded`: buffers that each lane
        leaves to the other."""
        self._files = files
        self._extents = extents
        self._skip = skip
        self._on_read = on_read
        self._keep = keep
        largest = max((extent.nbytes for extent in extents), default=0)
        self.ring_bytes = depth * buffer_bytes(largest)
        self._buffers = [aligned_buffer(largest) for _ in range(depth)]
        self._free = [*self._buffers]
        self._held: dict[int, _Pending] = {}
        self._used = {False: 0, True: 0}
        """Buffers of the ring that either lane has, of them the urgent one."""
        self._pending: deque[_Pending] = deque()
        self._sequence: Sequence[int] = range(len(extents))
        self._newest = len(extents) - 1
        self._most = depth - demanded
        self._demanded: deque[int] = deque()
        self._coming: dict[int, _Pending] = {}
        """Of what was demanded: what is not being read yet, and what is."""
        self._on_demand: frozenset[int] = frozenset()
        """All of it, which the sequence passes over."""
        self._reads = min(depth, reads)
        self._threads = self._new_threads()
        self.totals = ReadTotals()

    def take(self, index: int) -> U8:
        """The bytes of extents[index], waiting for them; the caller gives the array back. Raises ReadError.

        Where it is not in the ring (`in_ring`), the caller may keep it instead.
        """
        pending = self._next_of(index)
        try:
            self._read_on()
            begin = time.perf_counter()
            data, seconds = pending.read.result()
        except BaseException:
            self._drain()
            wait([pending.read])
            self._release(pending)
            raise
        if pending.in_ring:
            self._held[id(data)] = pending
        self.totals.count(data.nbytes, seconds, time.perf_counter() - begin)
        return data

    def follow(self, sequence: Sequence[int]) -> None:
        """From now on the sequence is of these extents, ascending."""
        self._sequence = sequence

    def demand(self, indices: Sequence[int]) -> None:
        """Read these extents before all others, in the order in which they will be taken; those that were demanded
        before and not taken are dropped."""
        self._drop_demanded()
        if self.is_ahead(indices):
            self._drain()
        self._demanded.extend(indices)
        self._on_demand = frozenset(indices)
        self._read_on()

    def is_ahead(self, indices: Collection[int]) -> bool:
        """Whether the sequence has begun to read one of them."""
        return any(pending.index in indices for pending in self._pending)

    def in_ring(self, data: U8) -> bool:
        """Whether an array that `take` returned has to go back to the ring."""
        return id(data) in self._held

    def give_back(self, data: U8, read_on: bool = True) -> None:
        """Let the ring reuse an array that `take` returned, at once or from the next call on; again does no harm."""
        pending = self._held.pop(id(data), None)
        if pending is not None:
            self._release(pending)
        if read_on:
            self._read_on()

    def recover(self) -> None:
        """Make the ring whole again where a pass was broken off, by an error or Ctrl-C, before it gave all back.

        To be called where nothing is held. What was read ahead is dropped, if anything is amiss.
        """
        self._drop_demanded()
        if len(self._free) + sum(pending.in_ring for pending in self._pending) == len(self._buffers):
            return
        self._threads.shutdown()  # waits for every read, also for one that nobody knows of
        self._threads = self._new_threads()
        self._pending.clear()
        self._held.clear()
        self._free, self._used = [*self._buffers], {False: 0, True: 0}
        self._newest = len(self._extents) - 1

    def fill(self) -> tuple[int, float]:
        """Read ahead from the first extent on, as far as the ring goes, and wait for it: bytes that came, and the
        seconds that they took.

        Errors are told when their extents are taken.
        """
        self.recover()
        first = next((index for index in self._sequence if not self._skip(index)), None)
        if self._pending and self._pending[0].index != first:
            self._drain()
        if not self._pending:
            self._newest = len(self._extents) - 1
        begin, there = time.perf_counter(), len(self._pending)
        self._read_on()
        new = [*self._pending][there:]
        wait([pending.read for pending in new])
        return sum(self._extents[pending.index].nbytes for pending in new), time.perf_counter() - begin

    def close(self) -> None:
        self._drain()
        self._threads.shutdown()
        self._free, self._buffers = [], []
        self._on_read = self._keep = None  # they may refer to the owner, which would be left to the garbage collector

    def _next_of(self, index: int) -> _Pending:
        """The read of an extent, taken from its lane."""
        if (coming := self._coming.pop(index, None)) is not None:
            return coming
        if index in self._demanded:  # no buffer was free for it
            self._demanded.remove(index)
            return self._start(index, urgent=True)
        while self._pending and self._pending[0].index != index:
            self._drop()
        if self._pending:
            return self._pending.popleft()
        self._newest = index
        return self._start(index)

    def _read_on(self) -> None:
        """Start reads of what is demanded, then of the extents that follow the newest one, as far as buffers are
        free."""
        while self._demanded and self._has_room(urgent=True) and len(self._coming) < len(self._buffers):
            index = self._demanded.popleft()
            self._coming[index] = self._start(index, urgent=True)
        sequence = self._sequence
        after = bisect_right(sequence, self._newest)
        for place in chain(range(after, len(sequence)), range(after)):
            if not self._has_room(urgent=False) or len(self._pending) >= len(self._buffers):
                return
            index = sequence[place]
            if index not in self._on_demand and not self._skip(index):
                self._newest = index
                self._pending.append(self._start(index))

    def _has_room(self, urgent: bool) -> bool:
        return bool(self._free) and self._used[urgent] < self._most

    def _new_threads(self) -> UrgentFirst[tuple[U8, float]]:
        return UrgentFirst(self._reads, "penstock-read")

    def _start(self, index: int, urgent: bool = False) -> _Pending:
        kept = None if self._keep is None else self._keep(index)
        buffer = self._free.pop() if kept is None else kept
        self._used[urgent] += kept is None
        read = self._threads.submit(lambda: self._read(index, buffer), urgent)
        return _Pending(index, buffer, kept is None, urgent, read)

    def _read(self, index: int, buffer: U8) -> tuple[U8, float]:
        begin = time.perf_counter()
        data = self._files.read(self._extents[index], buffer)
        end = time.perf_counter()
        if self._on_read is not None:
            self._on_read(index, data, begin, end)
        return data, end - begin

    def _drop(self) -> None:
        self._abandon(self._pending.popleft())

    def _drop_demanded(self) -> None:
        self._demanded.clear()
        self._on_demand = frozenset()
        while self._coming:
            self._abandon(self._coming.popitem()[1])

    def _abandon(self, pending: _Pending) -> None:
        if not pending.read.cancel():
            wait([pending.read])
        self._release(pending)

    def _release(self, pending: _Pending) -> None:
        if pending.in_ring:
            self._free.append(pending.buffer)
            self._used[pending.urgent] -= 1

    def _drain(self) -> None:
        self._drop_demanded()
        while self._pending:
            self._drop()
