"""How much guessing will bring, for assumed chances of guesses and known costs.

A pure function: (chances, seconds of a pass by its rows, seconds of a drafting step by its nodes) to a forecast. The
tree grows as speculate/grow.py grows it, and its size and the number of drafting steps are those at which tokens come
fastest. Not in it: what a drafter reads from the disk, and the rows that bring a draft model's own cache up to date.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest
from itertools import accumulate
from typing import TYPE_CHECKING

from penstock.speculate.grow import BATCH, LEAST_CHANCE, LEAST_OF_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class GuessForecast:
    """What to expect of a pass with guesses; `guesses` is 0 where they would not make tokens come faster."""

    tokens: float
    """Tokens that the pass yields, on average."""
    guesses: int
    steps: int
    """Calls of the drafter, of up to BATCH nodes each."""
    draft_seconds: float
    pass_seconds: float
    """Of the pass itself, which checks the guesses."""
    drafter: str = ""
    """Which one makes them, where that is known."""

    @property
    def seconds_per_token(self) -> float:
        """Drafting included."""
        return (self.draft_seconds + self.pass_seconds) / self.tokens


def forecast_guesses(
    chances: Sequence[float],
    pass_seconds: Callable[[int], float],
    step_seconds: Callable[[int], float],
    most_guesses: int,
) -> GuessForecast:
    """What to expect where the token to come is a drafter's first guess with the chance `chances[0]`, its second with
    `chances[1]`, ..., independently at each position. A pass checks at most `most_guesses`."""
    of_pass = [pass_seconds(1 + guesses) for guesses in range(most_guesses + 1)]
    best = GuessForecast(1.0, 0, 0, 0.0, of_pass[0])
    draft_seconds = 0.0
    for steps, (asked, tree) in enumerate(_growing(chances, 2 * most_guesses), 1):
        draft_seconds += step_seconds(asked)
        tokens = [*accumulate(nlargest(most_guesses, tree), initial=1.0)]
        prices = [(draft_seconds + seconds) / n for n, seconds in zip(tokens, of_pass, strict=False)]
        guesses = prices.index(min(prices))
        if prices[guesses] < best.seconds_per_token:
            best = GuessForecast(tokens[guesses], guesses, steps, draft_seconds, of_pass[guesses])
    return best


def _growing(chances: Sequence[float], most_asked: int) -> Iterator[tuple[int, list[float]]]:
    """Step after step: how many nodes the drafter is asked about, and the chances of all guesses so far."""
    tree: list[float] = []
    unasked, asked = [1.0], 0
    while unasked and asked < most_asked:
        batch = [chance for chance in unasked[:BATCH] if chance >= unasked[0] * LEAST_OF_BATCH]
        asked += len(batch)
        new = [chance * guess for chance in batch for guess in chances if chance * guess >= LEAST_CHANCE]
        tree += new
        unasked = sorted(unasked[len(batch) :] + new, reverse=True)
        yield len(batch), tree
