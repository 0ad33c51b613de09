"""What macOS is asked about memory, on a model of it: structures as xnu's headers lay them out, names of sysctl(8)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

memory_macos = pytest.importorskip("penstock.system.memory_macos", reason="needs resource", exc_type=ImportError)

FOOTPRINT = (7 << 32) + 12345
RUSAGE_BYTES, FOOTPRINT_AT = 96, 72
SYSCTL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p, ctypes.c_size_t
)
RUSAGE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)

Tell = Callable[..., None]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Have the kernel know these values by their names, and the footprint of this process, if it is given."""

    def tell(values: dict[bytes, bytes], footprint: int | None = FOOTPRINT) -> None:
        def sysctlbyname(name: bytes, old: int, nbytes: object, new: int | None, new_bytes: int) -> int:
            value, room = values.get(name), nbytes.contents  # type: ignore[attr-defined]
            if value is None or room.value < len(value) or new is not None or new_bytes:
                return -1
            ctypes.memmove(old, value, len(value))
            room.value = len(value)
            return 0

        def proc_pid_rusage(pid: int, flavor: int, buffer: int) -> int:
            if footprint is None or pid != os.getpid() or flavor != 0:
                return -1
            usage = bytearray(b"\xee" * RUSAGE_BYTES)
            struct.pack_into("=Q", usage, FOOTPRINT_AT, footprint)
            ctypes.memmove(buffer, bytes(usage), RUSAGE_BYTES)
            return 0

        libc = SimpleNamespace(sysctlbyname=SYSCTL(sysctlbyname), proc_pid_rusage=RUSAGE(proc_pid_rusage))
        monkeypatch.setattr(memory_macos, "_libc", lambda: libc)

    return tell


def test_layouts() -> None:
    assert ctypes.sizeof(memory_macos.RusageInfo) == RUSAGE_BYTES
    assert ctypes.sizeof(memory_macos.SwapUsage) == 32


def test_the_footprint(tell: Tell) -> None:
    tell({})
    assert memory_macos.anonymous_bytes() == FOOTPRINT
    assert memory_macos.cached_bytes() == 0


def test_a_kernel_that_does_not_tell(tell: Tell) -> None:
    tell({}, footprint=None)
    assert 1 << 20 < memory_macos.anonymous_bytes() <= psutil.virtual_memory().total
    assert memory_macos.swapped_bytes() == 0
    assert not memory_macos.is_low()


def test_swap(tell: Tell) -> None:
    tell({b"vm.swapusage": struct.pack("=QQQIi", 100 << 30, 93 << 30, 7 << 30, 16384, 1)})
    assert memory_macos.swapped_bytes() == 7 << 30


@pytest.mark.parametrize(("level", "low"), [(1, False), (2, True), (4, True)])
def test_pressure(tell: Tell, level: int, low: bool) -> None:
    tell({b"kern.memorystatus_vm_pressure_level": struct.pack("=i", level)})
    assert memory_macos.is_low() == low


def test_a_value_of_another_size_is_none(tell: Tell) -> None:
    tell({b"vm.swapusage": b"\x01" * 16, b"kern.memorystatus_vm_pressure_level": b"\x01" * 8})
    assert memory_macos.swapped_bytes() == 0
    assert not memory_macos.is_low()


def test_what_is_available() -> None:
    total = psutil.virtual_memory().total
    assert 0 < memory_macos.available_bytes() <= 0.85 * total


def test_the_heap_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    relief = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)(
        lambda *given: asked.append(given) or 0
    )
    monkeypatch.setattr(memory_macos, "_libc", lambda: SimpleNamespace(malloc_zone_pressure_relief=relief))
    memory_macos.trim_heap()
    assert asked == [(None, 0)]
