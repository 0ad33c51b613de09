"""Makes packed files and chunks of every kind until the time is up: `packed_files.py SECONDS [SEED] [--core FILE]`.

Sound ones must give the bits of what they were made from, hostile ones an error of Penstock's. `--core` is another
build of penstock._core to do it with, as one with sanitizers. What fails is told with its seed, which alone repeats it:
`packed_files.py 0 SEED`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from other_core import use_core

ROOT = Path(__file__).resolve().parents[2]
MATRICES = 200
"""For each model."""
HOSTILE = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=None)
    parser.add_argument("--core", type=Path)
    arguments = parser.parse_args()
    if arguments.core:
        use_core(arguments.core)
    sys.path.insert(0, str(ROOT / "tests"))
    seed = time.time_ns() % 10**9 if arguments.seed is None else arguments.seed
    end, counts = time.monotonic() + arguments.seconds, Counter[str]()
    while True:
        try:
            _round(seed, counts)
        except BaseException:
            traceback.print_exc()
            print(f"packed_files.py: failed with seed {seed} after {dict(counts)}", file=sys.stderr)
            return 1
        print(f"packed_files.py: seed {seed}: {dict(counts)}", file=sys.stderr, flush=True)
        if time.monotonic() >= end:
            return 0
        seed += 1


def _round(seed: int, counts: Counter[str]) -> None:
    import numpy as np

    from helpers.free_kernels import any_matrix, check_matrix
    from helpers.free_models import check_answers, check_copies, check_same, write_model
    from helpers.hostile_packed import attack, spoil
    from penstock.compute.kernels import Kernels

    warnings.simplefilter("error", RuntimeWarning)
    warnings.simplefilter("ignore", UserWarning)
    rng, kernels = np.random.default_rng(seed), Kernels(int(seed % 2) + 1)
    for _ in range(MATRICES):
        check_matrix(any_matrix(rng), kernels, rng)
        counts["matrices"] += 1
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), seed)
        check_same(model, kernels, seed)
        check_answers(model)
        check_copies(model, Path(folder))
        counts["models"] += 1
        for i in range(HOSTILE):
            with tempfile.TemporaryDirectory() as own:
                spoilt, done = spoil(model, Path(own), seed * HOSTILE + i)
                try:
                    refused = attack(spoilt, kernels, Path(own))
                except BaseException:
                    print(f"packed_files.py: {done}", file=sys.stderr)
                    raise
                counts["refused" if refused else "taken"] += 1


if __name__ == "__main__":
    sys.exit(main())
