"""The pool of threads, and the floating-point control register around every kernel."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from helpers.numerics_oracles import same_bits
from penstock import _core

F32 = npt.NDArray[np.float32]
FLUSH_AND_ROUND_UP = 0x1F80 | 0x8000 | 0x0040 | 0x4000  # all exceptions masked; flush to zero, denormals are zero, up
CONTROL_BITS = 0xFFC0  # the six lowest are flags that any operation may raise


class Mxcsr:
    """Reads and writes the calling thread's MXCSR by two machine instructions in a page of their own."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(bytes.fromhex("0fae1fc3 0fae17c3"))  # stmxcsr [rdi]; ret; ldmxcsr [rdi]; ret
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        function = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
        self._store: Callable[..., None] = function(start)
        self._load: Callable[..., None] = function(start + 4)

    def get(self) -> int:
        value = ctypes.c_uint32()
        self._store(ctypes.byref(value))
        return value.value

    def set(self, value: int) -> None:
        self._load(ctypes.byref(ctypes.c_uint32(value)))


@pytest.fixture
def mxcsr() -> Iterator[Mxcsr]:
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32":
        pytest.skip("needs an x86-64 CPU and its System V calls")
    register = Mxcsr()
    before = register.get()
    yield register
    register.set(before)


def product(pool: _core.ThreadPool, x: F32, w: F32) -> F32:
    out = np.empty((len(x), len(w)), np.float32)
    _core.matmul(pool, x, w.reshape(-1).view(np.uint8), "F32", out)
    return out


def test_flush_to_zero_and_rounding_of_the_caller_change_nothing(isa: str, mxcsr: Mxcsr) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, 64)) * 2.0**-70).astype(np.float32)
    w = (rng.standard_normal((300, 64)) * 2.0**-70).astype(np.float32)  # denormal products and sums
    angles, tokens = np.arange(50, dtype=np.int64) * 977, np.arange(50, dtype=np.int64)
    inv_freq = rng.random(8, np.float32)
    exponents = np.linspace(-104, -87, 64, dtype=np.float32)  # of denormal results

    def results() -> list[npt.NDArray[np.generic]]:
        pool = _core.ThreadPool(3, 1 << 17)  # its threads start with the caller's register
        cos, sin = np.empty((50, 8), np.float32), np.empty((50, 8), np.float32)
        noise = np.empty(50)
        small = np.empty(64, np.float32)
        _core.rope_table(angles, inv_freq, cos, sin)
        _core.gumbel(7, 0, 3, tokens, noise)
        _core.exp(pool, exponents, small)
        return [product(pool, x, w), product(pool, x[:1], w), cos, sin, noise, small]

    expected = results()
    mxcsr.set(FLUSH_AND_ROUND_UP)
    actual = results()
    after = mxcsr.get()
    mxcsr.set(0x1F80)
    assert after & CONTROL_BITS == FLUSH_AND_ROUND_UP
    assert (np.abs(expected[0]) < 2.0**-126).all()
    assert np.count_nonzero(expected[0]) > 0
    for a, b in zip(actual, expected, strict=True):
        assert same_bits(a, b)


def test_the_register_is_restored_exactly(mxcsr: Mxcsr) -> None:
    pool = _core.ThreadPool(2, 1 << 16)
    for value in (0x1F80, 0x9FC0, 0x7F80, 0x1FA5):
        mxcsr.set(value)
        product(pool, np.full((1, 3), 1e-30, np.float32), np.full((2, 3), 1e-30, np.float32))
        after = mxcsr.get()
        mxcsr.set(0x1F80)
        assert after & CONTROL_BITS == value & CONTROL_BITS


def test_callers_take_turns() -> None:
    pool = _core.ThreadPool(3, 1 << 17)
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((40, 70), np.float32), rng.standard_normal((400, 70), np.float32)
    expected = product(pool, x, w)
    results: list[bool] = []

    def work() -> None:
        results.extend(same_bits(product(pool, x, w), expected) for _ in range(50))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 200


def test_more_threads_than_cpus_or_work() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((9, 64), np.float32), rng.standard_normal((500, 64), np.float32)
    expected = product(_core.ThreadPool(1, 1 << 16), x, w)
    many = _core.ThreadPool(17, 1 << 16)
    assert many.threads == 17
    assert same_bits(product(many, x, w), expected)
    assert same_bits(product(many, x[:1], w[:1]), expected[:1, :1])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs CPU affinity")
def test_the_caller_keeps_its_cpus() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((9, 64), np.float32), rng.standard_normal((500, 64), np.float32)
    before = os.sched_getaffinity(0)
    pool = _core.ThreadPool(3, 1 << 16)
    expected = product(pool, x, w)
    assert os.sched_getaffinity(0) == before
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            assert same_bits(product(pool, x, w), expected)
            assert same_bits(product(_core.ThreadPool(2, 1 << 16), x, w), expected)
            assert os.sched_getaffinity(0) == {cpu}
    finally:
        os.sched_setaffinity(0, before)


def native_threads() -> set[int]:
    """The ids of all threads of this process, those that Python does not know of included."""
    return {thread.id for thread in psutil.Process().threads()}


def test_pools_end() -> None:
    before = native_threads()
    for threads in (1, 2, 5) * 20:
        pool = _core.ThreadPool(threads, 1 << 16)
        product(pool, np.ones((1, 4), np.float32), np.ones((2, 4), np.float32))
        del pool
    gc.collect()
    assert native_threads() <= before, "threads of other tests may end meanwhile, none of a pool is left"


@pytest.mark.parametrize(
    ("threads", "scratch", "problem"),
    [(0, 1 << 16, "threads must be positive"), (1, (1 << 16) - 1, "scratch_bytes must be at least 65536")],
)
def test_wrong_sizes_are_refused(threads: int, scratch: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        _core.ThreadPool(threads, scratch)
