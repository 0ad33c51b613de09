"""What Windows is asked about memory, on the model of it in `fake_kernel32.py`; structures of learn.microsoft.com."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import psutil
import pytest

from helpers.fake_kernel32 import FakeKernel32
from penstock.system import kernel32, memory_windows
from penstock.system.pages import _private_of_heap

PRIVATE, PEAK = (5 << 32) + 77, (6 << 32) + 11
GIB = 1 << 30


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel32]:
    fake = FakeKernel32()
    fake.install(monkeypatch)
    memory_windows._notification.cache_clear()
    yield fake
    memory_windows._notification.cache_clear()
    assert fake.misuse == []


def status(available: int, may_commit: int) -> bytes:
    return struct.pack("=II7Q", 64, 50, 16 * GIB, available, 20 * GIB, may_commit, 1, 2, 3)


def test_layouts() -> None:
    assert ctypes.sizeof(kernel32.MemoryCounters) == 80
    assert ctypes.sizeof(kernel32.MemoryStatus) == 64


def test_what_the_process_has_committed(windows: FakeKernel32) -> None:
    windows.memory["process"] = struct.pack("=II9Q", 80, 1, PEAK, 3, 4, 5, 6, 7, 8, 9, PRIVATE)
    assert memory_windows.anonymous_bytes() == PRIVATE
    assert memory_windows.peak_bytes() == PEAK
    assert (memory_windows.cached_bytes(), memory_windows.swapped_bytes()) == (0, 0)


def test_what_is_available(windows: FakeKernel32) -> None:
    windows.memory["system"] = status(8 * GIB, 12 * GIB)
    assert memory_windows.available_bytes() == int(0.85 * 8 * GIB)
    windows.memory["system"] = status(8 * GIB, 2 * GIB)  # a small page file
    assert memory_windows.available_bytes() == int(0.85 * 2 * GIB)


def test_what_fails_is_an_error(windows: FakeKernel32) -> None:
    for asked in (memory_windows.anonymous_bytes, memory_windows.available_bytes):
        with pytest.raises(PermissionError, match="error 5"):
            asked()


def test_low_memory(windows: FakeKernel32) -> None:
    assert not memory_windows.is_low()
    windows.low = 1
    assert memory_windows.is_low()
    windows.low = 0
    assert not memory_windows.is_low()


def test_without_the_notification(windows: FakeKernel32) -> None:
    windows.low = None
    assert not memory_windows.is_low()


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 5 << 20])
def test_pages_of_the_heap(nbytes: int) -> None:
    array = _private_of_heap(nbytes)
    assert array.shape == (nbytes,)
    assert not array.any()
    assert array.ctypes.data % 4096 == 0
    array[:] = 7
    part = array[:1]
    assert nbytes == 0 or part.base is array


def test_pages_of_the_heap_go_back() -> None:
    process = psutil.Process()
    array = _private_of_heap(64 << 20)
    array[:] = 1
    before = process.memory_info().rss
    del array
    assert before - process.memory_info().rss > 60 << 20
