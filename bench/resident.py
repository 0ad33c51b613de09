"""A model that is wholly in memory: packed and as it was, beside llama.cpp on the same BF16 weights, by turns.

    python bench/resident.py ORIGINAL PACKED --llama-cpp-python VENV/bin/python --work DIR [--json]

PACKED is what `penstock pack ORIGINAL PACKED` wrote. DIR gets a BF16 GGUF of ORIGINAL, which the next run uses again.
Both, and llama.cpp, stay open in processes of their own. A turn is a prompt of --prompt-tokens random tokens and
--tokens more, one at a time; the first turn of each warms it up and does not count. Ratios are to llama.cpp's turn of
the same round, above 1 where Penstock is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import last_line

PEERS = Path(__file__).resolve().parent / "peers"
PACKED, ORIGINAL, LLAMA = "Penstock, packed", "Penstock, BF16", "llama.cpp, BF16"
PAUSE_SECONDS = 0.3
"""Lets the other side's threads fall asleep."""


@dataclass(frozen=True)
class Turn:
    """Seconds of the prompt, the first token's draw included, and the median of the further tokens' seconds."""

    prompt_seconds: float
    token_seconds: float
    tokens: tuple[int, ...]
    bytes_read: int | None
    """From the disk; None of those who do not say."""


class Contestant:
    """A process below bench/peers that answers one line for each that it gets."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version: str = self._answer()["version"]

    def take(self, prompt: Sequence[int], tokens: int) -> Turn:
        assert self._process.stdin is not None
        time.sleep(PAUSE_SECONDS)
        print(json.dumps({"prompt": list(prompt), "tokens": tokens}), file=self._process.stdin, flush=True)
        answer = self._answer()
        seconds = answer["seconds"]
        return Turn(seconds[0], statistics.median(seconds[1:]), tuple(answer["tokens"]), answer.get("bytes_read"))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Result:
    """Medians over the rounds; ratios are medians of the rounds' ratios, to llama.cpp."""

    name: str
    version: str
    prompt_seconds: float
    token_seconds: float
    prompt_ratio: float
    token_ratio: float
    bytes_read: int | None
    """In the rounds that count."""


def summary(name: str, version: str, turns: list[Turn], beside: list[Turn]) -> Result:
    pairs = list(zip(turns, beside, strict=True))
    reads = [turn.bytes_read for turn in turns if turn.bytes_read is not None]
    return Result(
        name,
        version,
        statistics.median(turn.prompt_seconds for turn in turns),
        statistics.median(turn.token_seconds for turn in turns),
        statistics.median(other.prompt_seconds / turn.prompt_seconds for turn, other in pairs),
        statistics.median(other.token_seconds / turn.token_seconds for turn, other in pairs),
        sum(reads) if reads else None,
    )


def make_gguf(python: str, original: Path, folder: Path) -> Path:
    file = folder / "model.gguf"
    if not file.exists():
        command = [python, str(PEERS / "run_llama_cpp.py"), "prepare", str(original), str(folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            file.unlink(missing_ok=True)
            sys.exit(f"No GGUF was made: {last_line(result.stderr)}")
    return file


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    own = [sys.executable, str(PEERS / "serve_penstock.py")]
    options = [str(args.threads), args.memory]
    gguf = make_gguf(args.llama_cpp_python, args.original, args.work)
    return {
        PACKED: [*own, str(args.packed), *options],
        ORIGINAL: [*own, str(args.original), *options],
        LLAMA: [args.llama_cpp_python, str(PEERS / "serve_llama_cpp.py"), str(gguf), str(args.threads)],
    }


def measure(contestants: list[Contestant], args: argparse.Namespace) -> list[Result]:
    vocabulary = json.loads((args.original / "config.json").read_text())["vocab_size"]
    rng = np.random.default_rng(0)
    turns: dict[str, list[Turn]] = {contestant.name: [] for contestant in contestants}
    for number in range(args.rounds + 1):
        prompt = rng.integers(0, vocabulary, args.prompt_tokens).tolist()
        taken = {contestant.name: contestant.take(prompt, args.tokens + 1) for contestant in contestants}
        if taken[PACKED].tokens != taken[ORIGINAL].tokens:
            sys.exit("Packed weights gave other tokens than the original ones.")
        if number:
            for name, turn in taken.items():
                turns[name].append(turn)
    return [summary(c.name, c.version, turns[c.name], turns[LLAMA]) for c in contestants]


def show(results: list[Result], args: argparse.Namespace) -> None:
    print(f"{args.original.name}, {args.threads} threads, prompt of {args.prompt_tokens}, then {args.tokens} tokens")
    print(f"{'':20s}{'ms a token':>12s}{'ratio':>8s}{'prompt, s':>12s}{'ratio':>8s}{'read, MB':>10s}  version")
    for r in results:
        read = "-" if r.bytes_read is None else f"{r.bytes_read / 1e6:.0f}"
        tokens = f"{r.token_seconds * 1e3:12.2f}{r.token_ratio:8.2f}"
        print(f"{r.name:20s}{tokens}{r.prompt_seconds:12.2f}{r.prompt_ratio:8.2f}{read:>10s}  {r.version}")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path, help="a BF16 checkpoint")
    parser.add_argument("packed", type=Path, help="the same, packed")
    parser.add_argument(
        "--llama-cpp-python", default=sys.executable, help="a Python that holds llama-cpp-python and gguf"
    )
    parser.add_argument("--work", type=Path, required=True, help="a directory for the GGUF")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="8GiB", help="ceiling of each Penstock")
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32, help="after the first of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(words)


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    contestants: list[Contestant] = []
    try:
        for name, command in commands(args).items():
            contestants.append(Contestant(name, command))
        results = measure(contestants, args)
    finally:
        for contestant in contestants:
            contestant.close()
    if args.json:
        return print(json.dumps([asdict(result) for result in results], indent=1))
    return show(results, args)


if __name__ == "__main__":
    main()
