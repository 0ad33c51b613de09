"""Runs tests of kernels and codec on another build of penstock._core: `core_tests.py [PYTEST OPTIONS] --core FILE`.

As one with sanitizers, which ends the process where a kernel touches what is not its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from other_core import use_core

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/compute", "tests/packed_format")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", type=Path, required=True)
    arguments, others = parser.parse_known_args()
    use_core(arguments.core)
    import pytest

    # What a sanitizer has to say as it ends the process goes past Python.
    return pytest.main(["--rootdir", str(ROOT), "--capture=sys", *others, *(str(ROOT / folder) for folder in TESTS)])


if __name__ == "__main__":
    sys.exit(main())
