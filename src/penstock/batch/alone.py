"""A batch on one bench, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.batch.bench import Bench
    from penstock.batch.desk import Desk


def work_alone(desk: Desk, bench: Bench, tell: Callable[[], None]) -> None:
    """Until every line has a result; `tell` is called after every pass.

    Raises ReadError and MemoryCeilingError of passes, and PenstockError where a file cannot be read or written; the
    state then has all but the pass that failed.
    """
    while True:
        while bench.has_room and (asked := desk.next()) is not None:
            bench.take_up(asked)
        if not (bench.has_work or desk.has_ended):
            return
        desk.progress.unfinished = bench.unfinished
        passed = bench.step()
        desk.take(passed, passed.standing.unfinished)
        tell()
