"""What every system tells of memory, whichever the tests run on."""

from __future__ import annotations

import numpy as np
import psutil

from penstock.system import machine

MIB = 1 << 20


def test_what_this_process_takes() -> None:
    before = machine.footprint()
    assert MIB < before.anonymous <= before.nbytes <= psutil.virtual_memory().total
    array = np.ones(64 * MIB, np.uint8)
    grown = machine.footprint().anonymous - before.anonymous
    assert 60 * MIB < grown < 80 * MIB
    assert machine.anonymous_bytes() > grown
    assert machine.peak_process_bytes() >= grown
    del array
    machine.trim_heap()


def test_large_arrays_go_back_when_they_are_freed() -> None:
    machine.return_large_arrays()
    before = machine.anonymous_bytes()
    array = np.ones(20 * MIB, np.uint8)
    assert machine.anonymous_bytes() - before >= 19 * MIB
    del array
    assert machine.anonymous_bytes() - before < 2 * MIB


def test_what_is_left() -> None:
    assert 0 < machine.available_bytes() <= psutil.virtual_memory().total * 0.85
    assert machine.swapped_bytes() >= 0
    assert isinstance(machine.is_low(), bool)
