"""Turn every bit of what a batch keeps, one at a time: its database, SQLite's log, and its results.

python tools/fuzz/batch_bits.py [--step 1] [--seed 0]

The batch, whose answers are made up, goes on after each. It has to tell of the damage, or to end with the results that
it would have had. Exits with 1 where it does anything else; some hundred bits a second.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers.batch_damage import LOG, OUT, STATE, begin, flip, told


def turn(begun: Path, case: Path, file: str, bits: list[int]) -> Counter[str]:
    """What came of each bit."""
    outcomes = Counter[str]()
    for done, bit in enumerate(bits):
        try:
            outcome = "told" if told(begun, case, file, flip(bit)) else "of no consequence"
        except Exception:
            outcome = "WRONG"
            print(f"{file}, bit {bit}:\n{traceback.format_exc()}", flush=True)
        outcomes[outcome] += 1
        if (done + 1) % 10_000 == 0:
            print(f"{file}: {done + 1:,} of {len(bits):,}, {dict(outcomes)}", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="turn one bit in so many")
    parser.add_argument("--seed", type=int, default=0, help="which one")
    arguments = parser.parse_args()
    rng, wrong = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        ended, killed, case = (Path(folder) / name for name in ("ended", "killed", "case"))
        for begun in (ended, killed):
            begun.mkdir()
            begin(begun, killed=begun is killed)
        for begun, file in ((ended, STATE), (ended, OUT), (killed / "killed", LOG)):
            count, step = 8 * (begun / file).stat().st_size, arguments.step
            bits = [min(count - 1, first + rng.randrange(step)) for first in range(0, count, step)]
            outcomes = turn(begun, case, file, bits)
            print(f"{file}: {len(bits):,} of {count:,} bits turned, {dict(outcomes)}", flush=True)
            wrong += outcomes["WRONG"]
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
