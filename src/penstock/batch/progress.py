"""How far a batch is, and how long the rest may take."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.batch.state import Counts, Result

RECENT_PASSES = 16
"""So many tell how fast it goes."""
MORE_OF_LATE = 1.25
"""A request that has drawn more than others did in all is expected to draw so many times what it has."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A request that takes part in passes, or is about to: tokens that it has, and may come to have, all told."""

    tokens: int
    limit: int


@dataclass(frozen=True, slots=True)
class Left:
    """An estimate."""

    seconds: float
    at_most: bool
    """Whether it takes every request to draw as many tokens as it may, since none has ended yet."""


class Progress:
    """Counts lines, tokens and passes."""

    def __init__(self, counts: Counts) -> None:
        """`counts`: what earlier calls have done."""
        self.total = counts.total
        self.done = counts.done
        """With a result, failures included."""
        self.failed = counts.failed
        self.passes = 0
        """Of this call."""
        self.drawn = 0
        """Tokens that this call drew."""
        self.pass_seconds = 0.0
        """Of the latest pass."""
        self.unfinished: Sequence[Unfinished] = ()
        self.nodes: Sequence[str] = ()
        """The machines at work, where they are others than this one."""
        self._finished_tokens = counts.tokens
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_PASSES + 1)
        self._begin = time.perf_counter()

    @property
    def tokens(self) -> int:
        """Of all calls."""
        return self._finished_tokens + sum(one.tokens for one in self.unfinished)

    @property
    def seconds(self) -> float:
        """Since this call began to work."""
        return time.perf_counter() - self._begin

    @property
    def tokens_per_second(self) -> float | None:
        """Over the latest passes."""
        if len(self._recent) < 2:
            return None
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(end - begin, 1e-9)

    def count_pass(self, seconds: float) -> None:
        self.passes += 1
        self.pass_seconds = seconds

    def count(self, results: Sequence[Result], unfinished: Sequence[Unfinished], drawn: int, now: float) -> None:
        """What a pass brought until `now`: results, so many tokens, and the requests that go on."""
        self.done += len(results)
        self.failed += sum(result.failed for result in results)
        self.drawn += drawn
        self.unfinished = unfinished
        self._finished_tokens += sum(result.tokens for result in results)
        self._recent.append((now, self.drawn))

    def left(self) -> Left | None:
        """How long it may still take, by the tokens of the requests that have ended and by the latest passes.

        None where there is nothing to go by. It takes as long as all the tokens at the speed of late, but not less
        than the longest request at its share of that.
        """
        rate = self.tokens_per_second
        if not rate or not self.unfinished:
            return None
        answered, limits = self.done - self.failed, [one.limit for one in self.unfinished]
        mean = self._finished_tokens / answered if answered else sum(limits) / len(limits)
        each = [max(0.0, min(one.limit, max(mean, MORE_OF_LATE * one.tokens)) - one.tokens) for one in self.unfinished]
        waiting = self.total - self.done - len(self.unfinished)
        longest = max(mean * (waiting > 0), *each)
        tokens = max(sum(each) + waiting * mean, longest * len(self.unfinished))
        return Left(tokens / rate, at_most=not answered)
