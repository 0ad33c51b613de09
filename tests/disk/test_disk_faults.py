"""Disks that fail amid reads, writes, syncs and renames, by a library that is preloaded.

`python tools/fuzz/disk_faults.py` tries every call of every command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.thorough import quick

TOOL = Path(__file__).parents[2] / "tools" / "fuzz" / "disk_faults.py"
PARTS = ("packing", "log of a session", "state of a batch", "requests of a batch", "reads of weights", "opening")


@pytest.mark.skipif(sys.platform != "linux", reason="the library is written for Linux")
@pytest.mark.skipif(not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another library is preloaded")
@pytest.mark.parametrize("most", quick([1], [1, 4]))
def test_an_error_or_the_right_answer(most: int) -> None:
    """And the same once more, on a sound disk, ends as if nothing had been."""
    command = [sys.executable, str(TOOL), "--parts", "--most", str(most)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\n0 problems\n")
    for part in PARTS:
        assert f"{part}: read" in result.stdout
        assert f"{part}: read 0" not in result.stdout, "no read was seen"
