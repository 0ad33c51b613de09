from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import pytest

from penstock.disk.in_order import in_order


def test_results_come_in_order_whatever_takes_long() -> None:
    def slow(n: int) -> int:
        time.sleep(0.01 * (n % 3 == 0))
        return n

    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, (partial(slow, n) for n in range(20)), ahead=5)) == list(range(20))
        assert list(in_order(pool, [], ahead=5)) == []


def test_jobs_are_taken_only_so_far_ahead() -> None:
    taken = 0

    def take(n: int) -> partial[int]:
        nonlocal taken
        taken += 1
        return partial(slow, n)

    def slow(n: int) -> int:
        time.sleep(0.002)
        return n

    with ThreadPoolExecutor(2) as pool:
        results = in_order(pool, (take(n) for n in range(100)), ahead=4)
        for n in range(10):
            assert next(results) == n
            assert taken <= n + 5
        results.close()  # type: ignore[attr-defined]
    assert taken <= 14


def test_results_do_not_wait_for_jobs_that_are_yet_to_come() -> None:
    with ThreadPoolExecutor(2) as pool:

        def jobs() -> Iterator[partial[int]]:
            yield partial(int, 1)
            time.sleep(0.05)
            yield partial(int, 2)
            pytest.fail("the first result is there")

        assert next(in_order(pool, jobs(), ahead=4)) == 1


def test_an_error_comes_where_its_result_would_and_ends_it() -> None:
    done, go = [], Event()

    def job(n: int) -> int:
        if n == 1:
            raise ValueError("one")
        if n > 1:
            go.wait()
        done.append(n)
        return n

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, (partial(job, n) for n in range(9)), ahead=4)
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)
        go.set()
    assert set(done) <= {0, 2}  # those that had not begun are dropped
