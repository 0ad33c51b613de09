"""The choice of the instruction set."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from penstock import _core

AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NEEDS = {
    "x86_64": {
        "avx512vbmi2": AVX512 | {"avx512_vbmi2", "avx512_vpopcntdq", "avx512_vnni"},
        "avx512": AVX512,
        "avx2vnni": AVX2 | {"avx_vnni"},
        "avx2": AVX2,
    },
    "aarch64": {"neondotprod": {"asimddp"}, "neon": set[str]()},
}
"""By what Linux calls the machine and its features, best first; and, behind, there is always "scalar"."""
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
REQUIRED = NEEDS.get(MACHINE, {})
BEST_FIRST = [*REQUIRED, "scalar"]


def features() -> set[str] | None:
    """What Linux says of the first CPU; None elsewhere, and under emulators that show another one's."""
    path = Path("/proc/cpuinfo")
    label = "flags" if MACHINE == "x86_64" else "Features"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(label)), None)


def test_best_first_and_scalar_last() -> None:
    names = _core.isas()
    assert names == [name for name in BEST_FIRST if name in names]
    assert names[-1] == "scalar"


@pytest.mark.skipif(features() is None, reason="needs the features of this CPU in /proc/cpuinfo")
def test_found_as_the_kernel_says() -> None:
    found = features()
    assert found is not None
    assert _core.isas() == [name for name in BEST_FIRST if REQUIRED.get(name, set()) <= found]


def test_the_forced_one_is_active(isa: str) -> None:
    assert _core.isa() == isa
    pool = _core.ThreadPool(2, 1 << 16)
    out = np.empty((1, 1), np.float32)
    _core.matmul(pool, np.ones((1, 3), np.float32), np.ones(3, np.float32).view(np.uint8), "F32", out)
    assert out == 3
    assert _core.isa() == isa


def test_only_the_scalar_kernels_may_emulate(isa: str) -> None:
    assert not _core.emulates_fma() or isa == "scalar"


@pytest.mark.parametrize("name", ["", "AVX2", "Neon", "sve", "avx512 "])
def test_an_unknown_name_raises_and_changes_nothing(name: str) -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=f"instruction set '{name}' is unknown or unsupported here.*scalar"):
        _core.set_isa(name)
    assert _core.isa() == before
