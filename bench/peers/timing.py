"""What every peer shares: the prompt, how tokens are timed, and the one JSON object that it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

PROMPT = tuple(range(100, 1700, 100))
"""16 token ids that every vocabulary has, so that no tokenizer is needed."""

Prepare = Callable[[Path, Path], None]
Open = Callable[[Path, Path, int], Callable[[int], Iterator[int]]]


def measure(peer: str, version: str, open_model: Callable[[], Callable[[int], Iterator[int]]], count: int) -> str:
    """Open the model, draw `count` tokens greedily and time each; the first takes the prompt's pass. JSON."""
    begin = time.perf_counter()
    generate = open_model()
    marks, tokens = [time.perf_counter()], []
    for token in generate(count):
        marks.append(time.perf_counter())
        tokens.append(token)
    seconds = [after - before for before, after in pairwise(marks)]
    result = {
        "peer": peer,
        "version": version,
        "open_seconds": marks[0] - begin,
        "seconds_per_token": seconds,
        "median_seconds_per_token": statistics.median(seconds[1:] or seconds),
        "tokens": tokens,
    }
    return json.dumps(result)


def main(peer: str, version: str, prepare: Prepare, open_copy: Open) -> None:
    """The command line of a peer: `prepare MODEL COPY` makes its copy of the weights, `run MODEL COPY` measures."""
    parser = argparse.ArgumentParser(description=f"Measures {peer}.")
    parser.add_argument("action", choices=["prepare", "run"])
    parser.add_argument("model", type=Path, help="checkpoint in the Hugging Face layout")
    parser.add_argument("copy", type=Path, help="directory of the peer's own copy of the weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=3, help="tokens after the first")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; standard output is for the result
        if args.action == "prepare":
            args.copy.mkdir(parents=True, exist_ok=True)
            return prepare(args.model, args.copy)
        result = measure(peer, version, lambda: open_copy(args.model, args.copy, args.threads), args.tokens + 1)
    return print(result)
