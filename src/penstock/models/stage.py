"""A run of layers with their weights: hidden rows in, hidden rows out, and where the time of a pass went.

On one machine there is one stage, which holds every layer, the embedding and the head.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.compute.kernels import F32
    from penstock.models.decoder import Decoder
    from penstock.models.rows import Rows
    from penstock.weights.weights import Weights

    OnLayer = Callable[[int, float, float, float], None]
    """(layer, read_seconds, wait_seconds, compute_seconds)"""


@dataclass(frozen=True, slots=True)
class PartStats:
    """One part of a pass: seconds of the reads that it used, seconds that it waited for them, and the rest."""

    name: str
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class PassStats:
    """One pass: how many rows it served, and its parts in order (embedding, layers, head)."""

    rows: int
    parts: tuple[PartStats, ...]
    seconds: float
    """From its beginning to its end, which the parts are most of, guessing and drawing included."""
    stage_seconds: float
    """Of them, those from the embedding to the head."""
    draft_seconds: float = 0.0
    """And those of guessing."""
    guesses: int = 0
    """How many of the rows are."""

    @property
    def bytes_read(self) -> int:
        return sum(part.bytes_read for part in self.parts)

    def totals(self) -> PassTotals:
        """The sums over all parts."""
        return PassTotals(
            rows=self.rows,
            seconds=self.seconds,
            draft_seconds=self.draft_seconds,
            guesses=self.guesses,
            logits=self.parts[-1].name == "head",
            bytes_read=self.bytes_read,
            read_seconds=sum(part.read_seconds for part in self.parts),
            wait_seconds=sum(part.wait_seconds for part in self.parts),
            compute_seconds=sum(part.compute_seconds for part in self.parts),
        )


@dataclass(frozen=True, slots=True)
class PassTotals:
    """What remains of a pass's costs in a long record; `logits`: whether it computed any."""

    rows: int
    seconds: float
    draft_seconds: float
    guesses: int
    logits: bool
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    compute_seconds: float


class Stage:
    """Layers `layers` of a model whose matrices are `weights`."""

    def __init__(self, model: Decoder, weights: Weights, layers: range, on_layer: OnLayer | None = None) -> None:
        self.model = model
        self.weights = weights
        self.layers = layers
        self.on_layer = on_layer

    def run(self, rows: Rows) -> tuple[F32, PassStats]:
        """One pass over the weights: logits float32 [len(rows.wanted), vocab_size] of the rows that want them.

        Keys and values of all rows are in their caches afterwards, in slots that the caller commits. The head is not
        read where no row wants logits. Raises ReadError.
        """
        begin = time.perf_counter()
        parts: list[PartStats] = []
        try:
            logits = self._run(rows, parts)
        finally:
            end = time.perf_counter()
            self.weights.events.tell("pass", f"{len(rows)} row{'s' * (len(rows) != 1)}", begin, end)
        return logits, PassStats(len(rows), tuple(parts), end - begin, end - begin)

    def _run(self, rows: Rows, parts: list[PartStats]) -> F32:
        model = self.model
        rows.reserve()
        with self._part("embedding", parts):
            x = model.embed(rows)
            angles = model.angles(rows)
        for index in self.layers:
            with self._part(f"layer {index}", parts):
                model.layer(index, x, rows, angles)
            if self.on_layer is not None:
                self.on_layer(index, parts[-1].read_seconds, parts[-1].wait_seconds, parts[-1].compute_seconds)
        if not len(rows.wanted):
            return np.empty((0, model.config.vocab_size), np.float32)
        with self._part("head", parts):
            return model.head(model.final_norm(x[rows.wanted]))

    @contextmanager
    def _part(self, name: str, parts: list[PartStats]) -> Iterator[None]:
        totals = self.weights.totals
        begin, nbytes, read, waited = time.perf_counter(), totals.bytes_read, totals.read_seconds, totals.wait_seconds
        yield
        wait = totals.wait_seconds - waited
        end = time.perf_counter()
        compute = end - begin - wait
        self.weights.events.tell("part", name, begin, end, totals.bytes_read - nbytes)
        parts.append(PartStats(name, totals.bytes_read - nbytes, totals.read_seconds - read, wait, compute))
