"""A stage: some layers of a model with their weights, keys and values, and a share of memory. Hidden rows in, hidden
rows out.

On one machine there is one stage, which holds every layer, the embedding and the head. Stages that share a model out
are run one after the other by a chain (chain.py). What a stage is told is data, and so is what it answers: it may be in
another process.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from penstock.models.pass_stats import PartStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.compute.kernels import F32, U8
    from penstock.models.decoder import Decoder
    from penstock.models.kv_cache import KvCount, NumberedOp, Outbox
    from penstock.models.kv_planes import KvShape
    from penstock.models.logits import Logits
    from penstock.models.products import Matrices
    from penstock.models.rows import Rows
    from penstock.weights.weights import Weights

    OnLayer = Callable[[int, float, float, float], None]
    """(layer, read_seconds, wait_seconds, compute_seconds)"""

Tier = Literal["exact", "coarse"]
"""Which weights: the checkpoint's own, or the coarse tier that is in memory (for guesses)."""


@dataclass(frozen=True, slots=True)
class Share:
    """What of a model a stage holds."""

    layers: tuple[int, ...]
    embedding: bool = True
    head: bool = True
    window: int = 0
    """Bytes that its reader is to have ahead when its turn comes, where it has many turns in a pass and weights that do
    not fit; else 0."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a pass needs besides weights, in numbers that mean the same to every stage."""

    rows: int
    logit_rows: int
    """Rows whose logits are computed."""
    kv: KvCount
    """Of every cache, with what the pass adds to them."""
    ranked_rows: int = 0
    """Rows of which only the likeliest tokens are told."""
    guesses: int = 0
    """How many of the rows may be guesses, which take slots as they are made and as they are checked."""
    scored_rows: int = 0
    """Rows of which only scores are told."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a stage is to do: first to its caches and its memory, then with rows."""

    ops: tuple[NumberedOp, ...] = ()
    need: Need | None = None
    """Make room for such a pass."""
    rows: Rows | None = None
    embed: bool = False
    """Whether hidden rows come of the rows' tokens."""
    layers: tuple[int, ...] = ()
    head: bool = False
    """Whether logits come of the hidden rows that want them."""
    tier: Tier = "exact"


class MakesRoom(Protocol):
    """Keeps a stage to its share of memory."""

    def make(self, need: Need) -> None:
        """Make room for a pass. Raises MemoryCeilingError."""

    def relieve(self) -> None:
        """Give weights back if other programs need the memory; called every now and then."""


class Stage:
    """One stage in this process."""

    remote = False

    def __init__(
        self, decoder: Decoder, weights: Weights, share: Share, room: MakesRoom, on_layer: OnLayer | None = None
    ) -> None:
        self.decoder = decoder
        self.weights = weights
        self.share = share
        self.room = room
        self.on_layer = on_layer
        self.coarse: Matrices | None = None
        """Stand-ins for the weights, for guesses."""

    @property
    def outbox(self) -> Outbox:
        """What this stage has not done to its caches."""
        return self.decoder.planes.outbox

    @property
    def kv_shape(self) -> KvShape:
        return self.decoder.planes.shape

    @property
    def streamed_bytes(self) -> int:
        """Bytes that its next pass would read."""
        return self.weights.streamed_bytes

    def read_slots(self, blocks: Sequence[int], first: int, end: int) -> U8:
        """Keys and values of slots [first, end), uint8 [end - first, layers, bytes of a layer]."""
        return self.decoder.planes.read_slots(blocks, first, end)

    def write_slots(self, blocks: Sequence[int], first: int, data: U8) -> None:
        """Put what `read_slots` gave into slots from `first` on."""
        self.decoder.planes.write_slots(blocks, first, data)

    def read_block(self, block: int) -> U8:
        """A block's keys and values, uint8 [layers, bytes of a layer]; valid until the next `run`."""
        return self.decoder.planes.read_block(block)

    def write_block(self, block: int, data: U8) -> None:
        """Put what `read_block` gave into a block."""
        self.decoder.planes.write_block(block, data)

    def run(self, step: Step, x: F32 | None = None) -> tuple[F32 | Logits | None, tuple[PartStats, ...]]:
        """Hidden rows float32 [n, hidden_size], or the logits of `rows.wanted`, and what its parts took.

        Keys and values of all rows are in their caches afterwards, in slots that the caller commits. Raises ReadError,
        FormatError, MemoryCeilingError.
        """
        self.decoder.planes.apply(step.ops)
        if step.need is not None:
            self.room.make(step.need)
        if step.rows is None:
            return x, ()
        parts: list[PartStats] = []
        return self._run(step, step.rows, x, parts), tuple(parts)

    def _run(self, step: Step, rows: Rows, x: F32 | None, parts: list[PartStats]) -> F32 | Logits | None:
        if step.tier == "coarse":
            return self._guess(step, rows, x)
        decoder = self.decoder
        if step.embed:
            with self._part("embedding", parts):
                x = decoder.embed(rows)
        if x is not None and step.layers:
            decoder.walk(x, rows, step.layers, lambda index: self._layer(index, parts))
        if x is not None and step.head:
            with self._part("head", parts):
                return decoder.logits(decoder.final_norm(x[rows.wanted]), rows)
        return x

    def _guess(self, step: Step, rows: Rows, x: F32 | None) -> F32 | None:
        """As `_run`, over the coarse tier; it is told as a whole by whoever guesses."""
        if self.coarse is None:
            raise ValueError("this stage has no coarse tier")
        decoder = self.decoder.over(self.coarse)
        if step.embed:
            x = decoder.embed(rows)
        if x is not None:
            decoder.walk(x, rows, step.layers)
        return x

    @contextmanager
    def _layer(self, index: int, parts: list[PartStats]) -> Iterator[None]:
        with self._part(f"layer {index}", parts):
            yield
        self.room.relieve()
        if self.on_layer is not None:
            self.on_layer(index, parts[-1].read_seconds, parts[-1].wait_seconds, parts[-1].compute_seconds)

    @contextmanager
    def _part(self, name: str, parts: list[PartStats]) -> Iterator[None]:
        weights, totals = self.weights, self.weights.totals
        needed, fetched = weights.experts_needed, weights.experts_read
        begin, nbytes, read, waited = time.perf_counter(), totals.bytes_read, totals.read_seconds, totals.wait_seconds
        yield
        wait = totals.wait_seconds - waited
        end = time.perf_counter()
        compute = end - begin - wait
        self.weights.events.tell("part", name, begin, end, totals.bytes_read - nbytes)
        experts = weights.experts_needed - needed, weights.experts_read - fetched
        parts.append(PartStats(name, totals.bytes_read - nbytes, totals.read_seconds - read, wait, compute, *experts))
