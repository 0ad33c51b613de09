"""Rows in chunks through stages, one chunk in one stage while the next is in the one before it (GPipe, arXiv
1811.06965): prompts keep all machines busy."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

LEAST_ROWS = 32
"""Of a chunk: with fewer, products no longer pay for the weights' way from memory."""
CHUNKS_A_STAGE = 2
"""More chunks leave less of the time in which the pipe fills and empties, and cost more calls."""


def chunk_rows(rows: int, stages: int) -> int:
    """Rows of a chunk."""
    return max(LEAST_ROWS, -(-rows // (CHUNKS_A_STAGE * stages)))


class _StoppedError(Exception):
    """Another chunk has failed."""


def pipelined(chunks: int, legs: int, run: Callable[[int, int, T | None], T]) -> list[T]:
    """What each of several chunks is after the last leg, each going through all `legs` in order.

    `run(chunk, leg, before)` gives what a chunk is after a leg, and is called by several threads; of one leg, for one
    chunk after the other. Raises what the first that fails raises, once all have ended.
    """
    done = [[threading.Event() for _ in range(legs)] for _ in range(chunks)]
    stopped = threading.Event()

    def go(chunk: int) -> T:
        value: T | None = None
        try:
            for leg in range(legs):
                if chunk:
                    done[chunk - 1][leg].wait()
                if stopped.is_set():
                    raise _StoppedError
                value = run(chunk, leg, value)
                done[chunk][leg].set()
        except BaseException:
            stopped.set()
            raise
        finally:
            for event in done[chunk]:
                event.set()
        assert value is not None  # noqa: S101 - there is a leg
        return value

    with ThreadPoolExecutor(chunks, thread_name_prefix="penstock-chunk") as pool:
        futures = [pool.submit(go, chunk) for chunk in range(chunks)]
        try:
            return _results([future.result for future in futures])
        except BaseException:  # Ctrl-C, too: what has begun a leg ends it
            stopped.set()
            raise


def _results(asked: Sequence[Callable[[], T]]) -> list[T]:
    """All of them, or what the first raises that did not just stop for another."""
    results: list[T] = []
    stopped: BaseException | None = None
    for ask in asked:
        try:
            results.append(ask())
        except _StoppedError as error:
            stopped = error
    if stopped is not None:
        raise stopped
    return results
