"""What the disk gives right now: Penstock's own probe, direct reads with no arithmetic, as a command of its own.

    python bench/probe.py FILE ... [--bytes 2GB]

Prints {"bytes_per_second": ...}. Files are read one after the other, and again where they are too small.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from penstock.stages.probe import measure_disk
from penstock.system.sizes import parse_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--bytes", type=parse_bytes, default=2 * 10**9)
    args = parser.parse_args()
    print(json.dumps({"bytes_per_second": measure_disk(args.files, args.bytes).bytes_per_second}))


if __name__ == "__main__":
    main()
