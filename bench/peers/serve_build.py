"""Penstock, a task a line (bench/versions.py): serve_build.py ORIGINAL PACKED. Answers [seconds, outcome]."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from functools import cache
from typing import Any

import numpy as np

from penstock import LLM, SamplingParams, _core

THREADS = 2
MEMORY = "7GiB"
GUESSES = 64
K, N = 4096, 14336
"""The shape of a product: an 8B's wide matrices."""
CALLS = 20
"""Products a task, over weights that no cache holds from one call to the next."""

Answer = tuple[float, Any]


@cache
def product_weights() -> tuple[Any, list[np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0x3800, 0x3C00, N * K, dtype=np.uint16)  # as real weights have it, no infinities
    patterns |= rng.integers(0, 2, N * K, dtype=np.uint16) << 15
    return _core.ThreadPool(THREADS, 1 << 20), [patterns.view(np.uint8).copy() for _ in range(3)]


def product(rows: str) -> Answer:
    pool, weights = product_weights()
    x = np.random.default_rng(1).standard_normal((int(rows), K), np.float32)
    out = np.empty((int(rows), N), np.float32)
    start = time.perf_counter()
    for number in range(CALLS):
        _core.matmul(pool, x, weights[number % len(weights)], "BF16", out)
    return time.perf_counter() - start, float(out.sum())


def model_path(which: str) -> str:
    return sys.argv[{"original": 1, "packed": 2}[which]]


def open_model(which: str) -> Answer:
    start = time.perf_counter()
    llm = LLM.open(model_path(which), memory=MEMORY, threads=THREADS)
    seconds = time.perf_counter() - start
    llm.close()
    return seconds, None


@cache
def model(which: str, guesses: int) -> LLM:
    options: dict[str, Any] = {"draft_nodes": guesses} if guesses else {"draft": "none"}
    return LLM.open(model_path(which), memory=MEMORY, threads=THREADS, **options)


prompts = itertools.count()
"""No prompt comes twice: a model knows those that it has seen."""


def generate(which: str, guesses: int, prompt_tokens: int, tokens: int) -> tuple[float, float, int, list[int]]:
    """Seconds to the first token, seconds after it, passes after it, tokens."""
    prompt = np.random.default_rng(next(prompts)).integers(0, 50_000, prompt_tokens).tolist()
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=tokens, ignore_eos=True)
    start, marks, drawn = time.perf_counter(), [], []
    for piece in model(which, guesses).stream(prompt, params):
        marks.append(time.perf_counter())
        drawn.extend(piece.token_ids)
    return marks[0] - start, marks[-1] - marks[0], len(marks) - 1, drawn


def prompt(which: str, length: str) -> Answer:
    first, _, _, tokens = generate(which, 0, int(length), 1)
    return first, tokens


def tokens(which: str, count: str) -> Answer:
    _, rest, passes, drawn = generate(which, 0, 8, int(count) + 1)
    return rest / passes, drawn


def guesses(which: str, count: str) -> Answer:
    """Seconds a pass: guessing, the pass over all guesses, and taking what was right."""
    _, rest, passes, drawn = generate(which, GUESSES, 64, int(count) + 1)
    return rest / passes, drawn


TASKS = {"product": product, "open": open_model, "prompt": prompt, "tokens": tokens, "guesses": guesses}


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        for line in sys.stdin:
            name, *words = line.split()
            print(json.dumps(TASKS[name](*words)), file=answers, flush=True)


if __name__ == "__main__":
    main()
