"""The choice of the instruction set."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from penstock import _core

BEST_FIRST = ["avx512vbmi2", "avx512", "avx2", "scalar"]
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c", "bmi1", "bmi2"}
NEEDS = {
    "avx512vbmi2": AVX512 | {"avx512_vbmi2", "avx512_vpopcntdq", "avx512_vnni"},
    "avx512": AVX512,
    "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2"},
    "scalar": set[str](),
}


def test_best_first_and_scalar_last() -> None:
    names = _core.isas()
    assert names == [name for name in BEST_FIRST if name in names]
    assert names[-1] == "scalar"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 only")
def test_found_as_the_kernel_says() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert _core.isas() == [name for name in BEST_FIRST if NEEDS[name] <= set(flags)]


def test_the_forced_one_is_active(isa: str) -> None:
    assert _core.isa() == isa
    pool = _core.ThreadPool(2, 1 << 16)
    out = np.empty((1, 1), np.float32)
    _core.matmul(pool, np.ones((1, 3), np.float32), np.ones(3, np.float32).view(np.uint8), "F32", out)
    assert out == 3
    assert _core.isa() == isa


def test_only_the_scalar_kernels_may_emulate(isa: str) -> None:
    assert not _core.emulates_fma() or isa == "scalar"


@pytest.mark.parametrize("name", ["", "AVX2", "neon", "avx512 "])
def test_an_unknown_name_raises_and_changes_nothing(name: str) -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=f"instruction set '{name}' is unknown or unsupported here.*scalar"):
        _core.set_isa(name)
    assert _core.isa() == before
