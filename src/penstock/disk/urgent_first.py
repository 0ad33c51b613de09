"""A few threads for work of two kinds, of which the urgent is always begun first."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class UrgentFirst(Generic[Result]):
    """As a ThreadPoolExecutor, with two queues. Work that has begun is not interrupted."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._urgent: deque[tuple[Future[Result], Callable[[], Result]]] = deque()
        self._usual: deque[tuple[Future[Result], Callable[[], Result]]] = deque()

    def submit(self, work: Callable[[], Result], urgent: bool = False) -> Future[Result]:
        """The result of `work`, or what it raises; may be cancelled until it is begun."""
        future: Future[Result] = Future()
        (self._urgent if urgent else self._usual).append((future, work))
        self._pool.submit(self._work)  # one turn for each
        return future

    def shutdown(self) -> None:
        """End the threads, once all that was submitted is done."""
        self._pool.shutdown()

    def _work(self) -> None:
        try:
            future, work = self._urgent.popleft()
        except IndexError:
            future, work = self._usual.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
