from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from penstock.system.cgroups import Group
from penstock.system.machine import (
    available_bytes,
    footprint,
    is_low,
    peak_process_bytes,
    return_large_arrays,
    swapped_bytes,
    trim_heap,
)

memory_linux = pytest.importorskip("penstock.system.memory_linux", reason="needs POSIX", exc_type=ImportError)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
MIB, GIB = 1 << 20, 1 << 30


def test_what_is_available_is_the_least_of_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = available_bytes()
    assert 0 < plenty <= psutil.virtual_memory().total
    monkeypatch.setattr(memory_linux, "limited_groups", lambda: [Group(12345, 0), Group(plenty, 0)])
    assert available_bytes() == 12345
    monkeypatch.setattr(memory_linux, "limited_groups", lambda: [Group(1 << 60, 0)])
    assert available_bytes() <= psutil.virtual_memory().total * 0.85


class TestThisProcess:
    def test_footprint(self) -> None:
        before = footprint()
        assert MIB < before.anonymous < before.nbytes <= psutil.virtual_memory().total
        array = np.ones(64 * MIB, np.uint8)
        grown = footprint().anonymous - before.anonymous
        assert 63 * MIB < grown < 70 * MIB
        assert peak_process_bytes() >= grown
        del array
        trim_heap()

    def test_page_cache_of_libraries_is_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that this process has mapped counts as far as it is in memory, whoever read it."""
        path = tmp_path / "library"
        path.write_bytes(bytes(8 * MIB))
        # The pages of all other files come and go with what else the machine does.
        own_files = memory_linux._own_files
        monkeypatch.setattr(memory_linux, "_own_files", lambda: {name for name in own_files() if name == str(path)})
        assert footprint().cached == 0
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            assert footprint().cached == 8 * MIB
        assert footprint().cached == 0

    def test_page_cache_of_this_process(self) -> None:
        assert footprint().cached > MIB

    def test_large_arrays_go_back_when_they_are_freed(self) -> None:
        """Even after larger ones have been freed, which would raise glibc's threshold."""
        return_large_arrays()
        for size in (30 * MIB, 24 * MIB):
            np.ones(size, np.uint8)
        before = footprint().anonymous
        array = np.ones(20 * MIB, np.uint8)
        assert footprint().anonymous - before >= 19 * MIB
        del array
        assert footprint().anonymous - before < MIB

    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """As FreeBSD is: what psutil knows."""
        monkeypatch.setattr(memory_linux, "PROC_SELF", tmp_path)
        assert footprint().anonymous > MIB
        assert footprint().cached == 0
        assert peak_process_bytes() > MIB
        assert swapped_bytes() == 0
        assert not is_low()
