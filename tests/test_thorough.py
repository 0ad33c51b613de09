"""Which tests run: those that are marked as thorough where they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TEST = "tests/weights/test_free_models.py::test_any_choice_of_the_format"


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["tests/weights/test_free_models.py"], [0, 3, 7]),
        (["tests/weights/test_free_models.py", "--thorough"], range(8)),
        ([f"{TEST}[1]", "tests/weights/test_free_models.py"], [0, 1, 3, 7]),
        ([TEST], range(8)),
    ],
    ids=["none", "all", "one by name", "a function by name"],
)
def test_thorough_ones_are_asked_for(arguments: list[str], seeds: list[int]) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    found = [line for line in result.stdout.splitlines() if "::" in line]
    assert sorted(found) == [f"{TEST}[{seed}]" for seed in seeds]
