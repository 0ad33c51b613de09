"""A model that stays open and draws tokens when it is its turn (bench/resident.py): JSON in, seconds out."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Draw = Callable[[list[int], int], Iterator[int]]
"""Draws so many tokens greedily after a prompt, of which nothing is kept from turns before."""


def seconds_of_tokens(tokens: Iterator[int]) -> tuple[list[float], list[int]]:
    """Seconds until each of the tokens, from the one before; and the tokens."""
    marks, drawn = [time.perf_counter()], []
    for token in tokens:
        marks.append(time.perf_counter())
        drawn.append(token)
    return [after - before for before, after in pairwise(marks)], drawn


def serve(version: str, open_model: Callable[[], tuple[Draw, Callable[[], dict[str, Any]]]]) -> None:
    """Answer each line {"prompt": [...], "tokens": N} of standard input with one of seconds and tokens, and with what
    the model's second function has to say. The first line that is written, {"version": ...}, says that it is open."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        draw, say = open_model()
        print(json.dumps({"version": version}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            seconds, tokens = seconds_of_tokens(draw(request["prompt"], request["tokens"]))
            print(json.dumps({"seconds": seconds, "tokens": tokens, **say()}), file=answers, flush=True)
