"""Penstock, one turn after another: serve_penstock.py MODEL THREADS MEMORY."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from turns import Draw, serve

from penstock import LLM, SamplingParams


def open_model() -> tuple[Draw, Any]:
    llm = LLM.open(sys.argv[1], memory=sys.argv[3], threads=int(sys.argv[2]), draft="none")
    latest: dict[str, int] = {}

    def draw(prompt: list[int], count: int) -> Iterator[int]:
        params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=count, ignore_eos=True)
        for piece in llm.stream(prompt, params):
            yield from piece.token_ids
            latest["bytes_read"] = piece.stats.bytes_read

    return draw, latest.copy


if __name__ == "__main__":
    serve(f"penstock {version('penstock')}", open_model)
