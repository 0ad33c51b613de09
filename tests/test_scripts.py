"""`./scripts/install` adds the packages of an extra, and builds nothing for it: the compiler may be gone."""

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
