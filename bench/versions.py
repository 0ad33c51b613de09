"""Two builds of Penstock by turns, in one run: what a change did to speed.

    python bench/versions.py BEFORE/bin/python AFTER/bin/python ORIGINAL PACKED [--rounds 15] [--only NAME ...] [--json]

ORIGINAL is a BF16 checkpoint that fits in memory, PACKED what `penstock pack` made of it. Each build serves from a
process of its own. Who goes first alternates from round to round, and a ratio is the median of the rounds' ratios,
above 1 where AFTER takes longer. What both compute must agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SERVE = Path(__file__).resolve().parent / "peers" / "serve_build.py"
PAUSE_SECONDS = 0.05
"""Lets the other side's threads fall asleep."""
TASKS = {
    "product, 1 row": "product 1",
    "product, 8 rows": "product 8",
    "product, 64 rows": "product 64",
    "opening, packed": "open packed",
    "opening, BF16": "open original",
    "prompt of 200, packed": "prompt packed 200",
    "prompt of 200, BF16": "prompt original 200",
    "tokens, packed": "tokens packed 16",
    "tokens, BF16": "tokens original 16",
    "passes of 64 guesses, packed": "guesses packed 4",
}
"""Name: what peers/serve_build.py is asked for."""


@dataclass(frozen=True)
class Result:
    """Median seconds of a task before and after, and the quartiles of the rounds' ratios, after to before."""

    name: str
    before: float
    after: float
    low: float
    ratio: float
    high: float


class Build:
    """A build in a process of its own, which answers each task with its seconds and what came of it."""

    def __init__(self, python: str, models: list[str]) -> None:
        self._process = subprocess.Popen(
            [python, str(SERVE), *models], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def take(self, task: str) -> tuple[float, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        time.sleep(PAUSE_SECONDS)
        print(task, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"A build ended with status {self._process.wait()} at {task!r}.")
        seconds, outcome = json.loads(line)
        return seconds, outcome

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(name: str, before: Build, after: Build, rounds: int) -> Result:
    seconds: dict[Build, list[float]] = {before: [], after: []}
    for number in range(rounds + 1):
        outcomes = []
        for build in (before, after) if number % 2 else (after, before):
            taken, outcome = build.take(TASKS[name])
            outcomes.append(outcome)
            if number:  # the first round warms up
                seconds[build].append(taken)
        if outcomes[0] != outcomes[1]:
            sys.exit(f"{name}: the builds disagree.")
    ratios = [late / early for early, late in zip(seconds[before], seconds[after], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Result(name, statistics.median(seconds[before]), statistics.median(seconds[after]), low, middle, high)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a Python that holds the earlier build")
    parser.add_argument("after", help="a Python that holds the later build")
    parser.add_argument("original", help="a BF16 checkpoint")
    parser.add_argument("packed", help="the same, packed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args()


def main() -> None:
    args = parse()
    before, after = (Build(python, [args.original, args.packed]) for python in (args.before, args.after))
    results = []
    if not args.json:
        print(f"{'':30s}{'before, ms':>12s}{'after, ms':>12s}{'ratio':>8s}  quartiles")
    try:
        for name in args.only:
            result = compare(name, before, after, args.rounds)
            results.append(result)
            if not args.json:
                seconds = f"{result.before * 1e3:12.2f}{result.after * 1e3:12.2f}"
                print(f"{name:30s}{seconds}{result.ratio:8.3f}  {result.low:.3f} to {result.high:.3f}", flush=True)
    finally:
        before.close()
        after.close()
    if args.json:
        print(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
