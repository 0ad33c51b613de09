"""Memory that nobody may touch, right behind what a kernel is given."""

from __future__ import annotations

import ctypes
import sys

import pytest


def forbid(address: int, size: int) -> None:
    """Whatever reads or writes these `size` bytes, whole pages, ends the process."""
    if sys.platform == "win32":
        pytest.skip("needs mprotect")
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0) == 0
