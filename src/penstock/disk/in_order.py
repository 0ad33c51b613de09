"""Work done by many threads, its results in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

Result = TypeVar("Result")


def in_order(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """The results of all jobs, in order, as they are there; at most `ahead` of them, begun or done, wait for a turn.

    Jobs are taken from the iterable by the caller's thread. Where it stops early, those not yet begun are dropped.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            while len(pending) > ahead or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
