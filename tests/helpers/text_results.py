"""A result of `bench --speculate --text` that was never measured."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.benchmarks.acceptance import Acceptance, Chain, FirstGuesses, TextResult


def text_result(temperatures: Sequence[float] = (0.0, 1.0), nodes: Sequence[int] = (1, 16)) -> TextResult:
    acceptance = [
        Acceptance(
            drafter=name,
            temperature=temperature,
            nodes=count,
            tokens=100,
            passes=40,
            tokens_per_pass=2.5 + count / 10 - temperature,
            nodes_per_pass=float(count),
            right_by_depth=[0.5, 0.25],
            asked_per_pass=20.0,
            steps_per_pass=5.0,
            draft_seconds_per_pass=0.1,
            seconds_per_token=0.2,
        )
        for temperature in temperatures
        for name in ("lookup", "coarse", "together")
        for count in nodes
    ]
    chains = [
        Chain("coarse", temperature, count, 4.0, same, length, 3.25)
        for temperature in temperatures
        for count in nodes
        for same, length in (("steps", 5), ("rows", 20))
    ]
    within = {1: 0.5, 2: 0.625, 4: 0.75, 8: 0.875}
    first = [FirstGuesses("coarse", temperature, 100, within) for temperature in temperatures]
    return TextResult("model", None, "text.txt", 2, 20, 50, acceptance, chains, first, ["lookup", "coarse"])
