from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.guessing import Scripted, root
from helpers.thorough import examples
from penstock.forecast.guess_forecast import GuessForecast, forecast_guesses
from penstock.forecast.guess_plan import ASSUMED
from penstock.speculate.grow import BATCH, LEAST_CHANCE, Growth


def ten(rows: int) -> float:
    """Seconds of a pass, however many rows it has."""
    return 10.0


def test_a_chain() -> None:
    """After 1, 2, 3 steps of a second each there are 1.5, 1.75, 1.875 tokens: a second of them costs the least."""
    assert forecast_guesses([0.5], ten, lambda nodes: 1.0, 4) == GuessForecast(1.75, 2, 2, 2.0, 10.0)


def test_a_tree_of_which_every_row_costs() -> None:
    """Of 0.5, 0.25, 0.25, 0.125, ... the first three are worth a second of a pass that takes 10, the others are not."""
    grown = forecast_guesses([0.5, 0.25], lambda rows: 9.0 + rows, lambda nodes: 0.0, 64)
    assert grown == GuessForecast(2.0, 3, 2, 0.0, 13.0)
    assert grown.seconds_per_token == 6.5


def test_a_step_asks_about_several_nodes() -> None:
    asked: list[int] = []

    def step(nodes: int) -> float:
        asked.append(nodes)
        return 0.0

    forecast_guesses([0.4, 0.3, 0.2], ten, step, 200)
    assert asked[:3] == [1, 3, BATCH]
    assert max(asked) == BATCH
    assert sum(asked) < 400 + BATCH


def test_no_guess_that_does_not_pay() -> None:
    """11 s for 1.05 tokens are more than 10 for one."""
    assert forecast_guesses([0.05], ten, lambda nodes: 1.0, 64) == GuessForecast(1.0, 0, 0, 0.0, 10.0)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_than_there_is_room_for(most: int) -> None:
    grown = forecast_guesses([0.9], ten, lambda nodes: 0.0, most)
    assert grown.guesses == most
    assert grown.tokens == pytest.approx(sum(0.9**depth for depth in range(most + 1)))


def test_nobody_guesses() -> None:
    assert forecast_guesses([], ten, lambda nodes: 1.0, 9) == GuessForecast(1.0, 0, 0, 0.0, 10.0)


chances = st.lists(st.floats(0.001, 1), min_size=1, max_size=4).map(
    lambda shares: sorted((0.99 * share / sum(shares) for share in shares), reverse=True)
)


@settings(max_examples=examples(50))
@given(chances, st.floats(0, 1), st.floats(0, 3), st.integers(0, 64))
def test_bounds(chances: list[float], per_row: float, per_step: float, most: int) -> None:
    grown = forecast_guesses(chances, lambda rows: 10 + per_row * rows, lambda nodes: per_step, most)
    assert grown.seconds_per_token <= 10 + per_row
    assert grown.guesses <= most
    assert 1 <= grown.tokens <= min(1 + most, 1 / (1 - sum(chances))) + 1e-9
    assert grown.draft_seconds == pytest.approx(grown.steps * per_step)
    if grown.guesses:
        assert grown.tokens - 1 >= LEAST_CHANCE * grown.guesses


@pytest.mark.parametrize("chances", ASSUMED)
def test_tokens_of_simulated_walks(chances: Sequence[float]) -> None:
    """The tokens that a pass brings are those of walks through the same tree, on average."""
    grown = forecast_guesses(chances, lambda rows: 10 + 0.1 * rows, lambda nodes: 0.1, 64)
    tree: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(12):
        tree |= {
            (*path, i): tree[path] * chance for path in tree for i, chance in enumerate(chances) if tree[path] > 0.01
        }
    kept = set(sorted(tree, key=lambda path: -tree[path])[: 1 + grown.guesses])
    rng, total, walks = random.Random(0), 0, 20_000
    for _ in range(walks):
        path: tuple[int, ...] = ()
        while path in kept:
            total += 1
            [right] = rng.choices(range(len(chances) + 1), [*chances, 1 - sum(chances)])
            path = (*path, right)
    assert total / walks == pytest.approx(grown.tokens, rel=0.03)


class Known:
    """A calibration that knows the drafter's scores to be its chances."""

    def __init__(self, of_any: float) -> None:
        self._of_any = of_any

    def chance(self, claim: Any, depth: int) -> float:
        return float(claim.score)

    def chance_of_any(self, drafter: str, depth: int) -> float:
        return self._of_any


@pytest.mark.parametrize("chances", ASSUMED)
@pytest.mark.parametrize(("per_row", "per_step"), [(0.0, 3.0), (1.0, 1.0), (4.0, 20.0), (0.1, 60.0)])
def test_the_engine_grows_about_the_same_tree(chances: Sequence[float], per_row: float, per_step: float) -> None:
    """It stops when a step is not worth its seconds, and that is near the best place to stop."""

    def pass_seconds(rows: float) -> float:
        return 100.0 + per_row * rows

    grown = forecast_guesses(chances, pass_seconds, lambda nodes: per_step, 256)
    drafter = Scripted(lambda tree, node: list(enumerate(chances)), free=False)
    seconds = SimpleNamespace(
        pass_seconds=pass_seconds,
        draft_seconds=lambda drafter, rows: per_step,
        learn_draft=lambda *measured: None,
        free_seconds=0.0,
    )
    known: Any = Known(sum(chances))
    [tree] = Growth([root()], [drafter], {False: known, True: known}, seconds).run()  # type: ignore[arg-type]
    steps = len(drafter.batches)
    price = (steps * per_step + pass_seconds(len(tree))) / sum(tree.chances)
    assert grown.seconds_per_token <= price * (1 + 1e-9)
    assert price == pytest.approx(grown.seconds_per_token, rel=0.1)
