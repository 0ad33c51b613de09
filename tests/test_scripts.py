"""`./scripts/install` adds the packages of an extra, and builds nothing for it: the compiler may be gone. Without one,
the build backend takes one, and no folder remains.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not (ROOT / ".venv/bin/python").exists(), reason="needs bash, and .venv"
)


def installed(*extras: str) -> subprocess.CompletedProcess[str]:
    """What pip would be told."""
    code = '. scripts/lib.sh; pip() { printf "%s\\n" "$@"; }; install_extras "$@"'
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code, "install", *extras],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def declared(extra: str) -> set[str]:
    lines = (re.fullmatch(r"""(.*); extra == ['"](.*)['"]""", line) for line in requires("penstock") or ())
    return {re.sub(r"\s", "", line[1]) for line in lines if line and line[2] == extra}


@pytest.mark.parametrize("extras", [("serve",), ("plot",), ("serve", "plot"), ()])
def test_packages_of_extras(extras: tuple[str, ...]) -> None:
    result = installed(*extras)
    assert (result.returncode, result.stderr) == (0, "")
    packages = {package for extra in extras for package in declared(extra)}
    assert {*result.stdout.split()} == ({"install"} | packages if extras else set())
    assert all(declared(extra) for extra in extras)


def test_no_such_extra() -> None:
    result = installed("serve", "nope")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "install: there is no extra nope: pyproject.toml lists them\n"


@pytest.mark.parametrize(("compiles", "cxx", "remains"), [("true", "c++", True), ("false", "none", False)])
def test_build(compiles: str, cxx: str, remains: bool, tmp_path: Path) -> None:
    """Beside the development tools; without a compiler pip has to make the environment that zig comes with."""
    (tmp_path / ".done-dev").touch()
    code = f"""
        . scripts/lib.sh
        venv=$1
        unset CXX
        has() {{ true; }}
        compiles_cxx20() {{ {compiles}; }}
        pip() {{ printf '%s\\n' "${{CXX:-none}}" "$@"; }}
        install_penstock
    """
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code, "install", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    used, install, *options = result.stdout.split()
    assert (used, install, options[-2:]) == (cxx, "install", ["--editable", str(ROOT)])
    assert ("--no-build-isolation" in options) == remains
    assert (tmp_path / "build").exists() == remains
    assert ("ziglang" in result.stderr) == (not remains)
