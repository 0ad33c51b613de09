"""How far the passes of one answer are, in words that fit a line."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from penstock.completion import Stats
    from penstock.events import Event

RATE_SECONDS = 2.0
"""How far back the shown bytes a second look."""
SEEN_SHARE = 0.25
"""Of what the first token takes: how long it took tells the rest."""
TOLD_SECONDS = 0.05
"""Guessing that takes less is not told."""


class Progress:
    """Takes in events and samples; tells items for a status line, each with a shorter form where there is one."""

    def __init__(self, layers: int, passes: int = 1, head_layers: float = 0.0) -> None:
        """`passes`: until the first token comes. `head_layers`: as many layers take as long as the head does."""
        self._layers = layers
        self._work = passes * layers + head_layers
        """Of the first token, in layers."""
        self._passes_done = 0
        self._parts = 0
        """Parts of this pass that are done: the embedding, layers, the head."""
        self._begin = 0.0
        self._forecast: float | None = None
        self._token_seconds = 0.0
        self._tokens_per_pass = 0.0
        self._draft_seconds = 0.0
        """Of the latest guessing."""
        self.guessing = False
        """Whether guesses are being made, and take long enough to be told."""
        self._samples: deque[tuple[float, int]] = deque()
        self.tokens = 0
        """How many have come."""

    def begin(self, now: float, forecast: float | None) -> None:
        """The passes begin; `forecast`: seconds to the first token, where they are known."""
        self._begin, self._forecast = now, forecast

    def take(self, event: Event) -> None:
        """Something has happened in the thread of the passes."""
        if event.kind == "part":
            self._parts += 1
        elif event.kind == "pass":
            self._parts = 0
            self._passes_done += 1
            self.guessing = self._draft_seconds >= TOLD_SECONDS
        elif event.kind == "draft":
            self._draft_seconds, self.guessing = event.end - event.begin, False

    def count(self, stats: Stats) -> None:
        """Tokens have come."""
        self.tokens = stats.tokens
        self._tokens_per_pass = stats.tokens_per_pass if stats.guesses.nodes else 0.0
        if stats.tokens > 1:
            self._token_seconds = (stats.seconds - stats.first_token_seconds) / (stats.tokens - 1)

    def sample(self, now: float, bytes_read: int) -> None:
        """What has been read in all until now."""
        self._samples.append((now, bytes_read))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()

    def items(self, now: float) -> list[tuple[str, ...]]:
        """What there is to say, the most important first."""
        said = [self._waiting(now), self._layer(), self._rate()]
        if self._token_seconds:
            said.append((f"{self._token_seconds:.3g} s/token",))
        if self._tokens_per_pass:
            said.append((f"{self._tokens_per_pass:.1f} tokens/pass",))
        if self.tokens:
            said.append((f"{self.tokens} token{'s' * (self.tokens != 1)}",))
        return [item for item in said if item]

    def seconds_left(self, now: float) -> float | None:
        """Until the first token: by the forecast at first, from `SEEN_SHARE` on by what has been seen alone."""
        layers = self._passes_done * self._layers + min(self._layers, max(0, self._parts - 1))
        done, elapsed = min(1.0, layers / self._work), now - self._begin
        if not done:
            return None if self._forecast is None else max(0.0, self._forecast - elapsed)
        seen = elapsed / done
        weight = 1.0 if self._forecast is None else min(1.0, done / SEEN_SHARE)
        return (weight * seen + (1 - weight) * (self._forecast or 0.0)) * (1 - done)

    def _waiting(self, now: float) -> tuple[str, ...]:
        left = None if self.tokens else self.seconds_left(now)
        if left is None:
            return ()
        said = seconds_in_words(left)
        return (f"first token in about {said}", f"first token in {said}", f"{said} left")

    def _layer(self) -> tuple[str, ...]:
        if self.guessing:
            return ("guessing",)
        if self._parts > self._layers:
            return ("head",)
        return (f"layer {max(1, self._parts)}/{self._layers}",)

    def _rate(self) -> tuple[str, ...]:
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        if after == before or end == begin:
            return ()
        return (f"{(after - before) / (end - begin) / 1e9:.2f} GB/s",)


def seconds_in_words(seconds: float) -> str:
    """Whole seconds, at least one; minutes where they are many."""
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def fit(items: Iterable[Sequence[str]], room: int) -> str:
    """The items that fit into so many characters, each in the first of its forms that does."""
    line = ""
    for forms in items:
        longer = (f"{line}, {form}" if line else form for form in forms)
        line = next((candidate for candidate in longer if len(candidate) <= room), line)
    return line
