"""Kills `penstock batch` with signal 9 at random moments, again and again, and compares what it gives in the end.

    python bench/kill_batch.py                       # 50 kills of batches of the demo model
    python bench/kill_batch.py --kills 200 --memory 240MiB --seed 7

Each batch is killed one to three times, at moments spread evenly over what a whole run takes, its beginning and its end
included, and then run to its end. Its results have to be those of a run that nobody killed, byte for byte, and nothing
else may be left behind. Exits with 1 where they are not.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

PROMPTS = ("def add(a, b):", "import os\n\n", "class Stack:\n", "for line in lines:\n", "# Sort a list\n", "x = [1, 2,")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--memory", help="ceiling on each process")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _Trial(asked, Path(folder)).run()


class _Trial:
    """Batches of the same requests, one after the other."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self._asked = asked
        self._folder = folder
        self._rng = random.Random(asked.seed)
        self._source = folder / "in.jsonl"
        self._source.write_text("".join(json.dumps(request) + "\n" for request in requests(asked.requests)))
        self._places: Counter[str] = Counter()
        self._seconds = 0.0
        """What a whole run takes; other programs may slow one down, so the least that was seen."""

    def run(self) -> int:
        summary = self._finish(self._folder / "expected.jsonl")
        expected = (self._folder / "expected.jsonl").read_bytes()
        print(f"undisturbed: {summary['passes']} passes, {summary['tokens']} tokens, {self._seconds:.2f} s", flush=True)
        batches = same = 0
        while self._places.total() < self._asked.kills:
            out = self._folder / f"{batches}.jsonl"
            kills = self._kill_some(out)
            drawn = self._finish(out)["drawn"]
            is_same = out.read_bytes() == expected and not list(self._folder.glob(f"{out.name}.*"))
            batches, same = batches + 1, same + is_same
            print(f"batch {batches}: {kills}; then {drawn} tokens: {'same' if is_same else 'DIFFERENT'}", flush=True)
        print(f"{self._places.total()} kills in {batches} batches: {dict(self._places)}")
        print(f"{same} of {batches} batches have the same results")
        return 0 if same == batches else 1

    def _kill_some(self, out: Path) -> str:
        """Up to three kills of one batch: when, and amid what."""
        said = []
        for _ in range(self._rng.randint(1, 3)):
            moment, begin = self._rng.uniform(0, self._seconds), time.perf_counter()
            with subprocess.Popen(self._command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                try:
                    process.wait(moment)
                    self._seconds = min(self._seconds, time.perf_counter() - begin)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process.returncode == -signal.SIGKILL:
                place = place_of(out)
                self._places[place] += 1
                said.append(f"{moment:.2f} s ({place})")
        return "killed after " + ", ".join(said) if said else "done before it was to be killed"

    def _finish(self, out: Path) -> dict[str, Any]:
        begin = time.perf_counter()
        result = subprocess.run(self._command(out), capture_output=True, text=True, check=False)
        if result.returncode not in (0, 1) or not result.stdout:  # 1: some requests are errors
            raise SystemExit(f"exit code {result.returncode}: {result.stderr}")
        if not self._seconds:
            self._seconds = time.perf_counter() - begin
        summary: dict[str, Any] = json.loads(result.stdout)
        return summary

    def _command(self, out: Path) -> list[str]:
        memory = ["--memory", self._asked.memory] if self._asked.memory else []
        command = [sys.executable, "-m", "penstock", "batch", self._asked.model, str(self._source), str(out)]
        return [*command, "--json", "--quiet", "--at-once", "8", *memory]


def requests(count: int) -> list[dict[str, Any]]:
    """Requests of all kinds, some of which are errors."""
    rng, made = random.Random(1), []
    for number in range(count):
        body: dict[str, Any] = {"prompt": rng.choice(PROMPTS) * rng.randint(1, 4), "max_tokens": rng.randint(1, 60)}
        if number % 2:
            body |= {"temperature": rng.uniform(0.2, 1.4)}
        if number % 5 == 1:
            body |= {"logprobs": rng.randint(0, 5)}
        if number % 7 == 2:
            body |= {"n": 2}
        if number % 11 == 3:
            body |= {"stop": ["\n\n", "return"]}
        if number % 13 == 4:
            body |= {"temperature": 5}
        made.append({"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body})
    return made


def place_of(out: Path) -> str:
    """How far a batch had got, by the files that it left."""
    if out.with_name(out.name + ".ordered").exists():
        return "putting in order"
    if not out.with_name(out.name + ".state").exists():
        return "at the end" if out.exists() else "before its state"
    return "amid passes" if out.exists() else "before its passes"


if __name__ == "__main__":
    sys.exit(main())
