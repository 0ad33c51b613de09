"""The comparison of what instruction sets compute sees a digest that differs, or lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "tools/compare_digests.py"
ONE = ["encode plain 07", "matmul fast 12", "exp fast 34", "matmul scalar 12", "exp scalar 34"]
OTHER = ["encode plain 07", "matmul scalar 12", "exp scalar 34"]


def compare(folder: Path, one: list[str], other: list[str], tables: str = "scalar") -> tuple[int, str]:
    arguments = []
    for name, lines, wanted in (("one", one, "fast,scalar"), ("other", other, tables)):
        path = folder / f"{name}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        arguments.append(f"{path}:{wanted}")
    result = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return result.returncode, result.stdout


def test_equal(tmp_path: Path) -> None:
    status, output = compare(tmp_path, ONE, OTHER)
    assert status == 0
    assert output.splitlines() == [
        "one: 3 functions, by fast, scalar", "other: 3 functions, by scalar", "all digests agree"
    ]  # fmt: skip


@pytest.mark.parametrize("which", range(len(OTHER)))
def test_any_other_digest(which: int, tmp_path: Path) -> None:
    lines = list(OTHER)
    function, table, digest = lines[which].split()
    lines[which] = f"{function} {table} 99"
    status, output = compare(tmp_path, ONE, lines)
    assert status == 1
    assert f"99 by {table} on other" in output
    assert f"{function}: {digest} by" in output


def test_tables_of_one_cpu(tmp_path: Path) -> None:
    status, output = compare(tmp_path, [*ONE[:2], "exp fast 35", *ONE[3:]], OTHER)
    assert status == 1
    assert "exp: 35 by fast on one; 34 by scalar on one, scalar on other" in output


def test_a_table_that_lacks(tmp_path: Path) -> None:
    status, output = compare(tmp_path, ONE, OTHER, "neon,scalar")
    assert status == 1
    assert output.endswith("other.txt: neon lacks exp, matmul\n")


@pytest.mark.parametrize("left", [[], OTHER[:1], OTHER[:2]])
def test_functions_that_lack(left: list[str], tmp_path: Path) -> None:
    status, output = compare(tmp_path, ONE, left, "scalar" if left else "")
    assert (status, "lack" in output or "no digests" in output) == (1, True)
