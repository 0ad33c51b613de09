"""Lines of a batch, and the memory that they take, for a process of its own."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from penstock.batch.requests import Line
from penstock.batch.state import Result, State


def lines(count: int) -> Iterator[tuple[Line, str]]:
    """Every third custom_id is one that was there before."""
    for number in range(1, count + 1):
        custom_id = f"request-{number - 2 if number % 3 == 0 else number}"
        yield Line(number, number * 100, 100, number.to_bytes(16, "little")), custom_id


def peak_of_lines(path: Path, count: int) -> int:
    """The most bytes of Python that beginning with so many lines takes, or going through their results."""
    with State(path) as state:
        tracemalloc.start()
        state.begin({}, lines(count))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for begin in range(1, count + 1, 1000):
            state.commit([], [Result(number, b"", False, 0) for number in range(begin, begin + 1000)])
        tracemalloc.start()
        places = sum(1 for _ in state.places())
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert places == state.counts().total == count
    return peak
