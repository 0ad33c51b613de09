"""Several stages run as if they were one: what the engine knows of a model.

Each layer belongs to one stage. A pass goes from stage to stage as the layers follow one another, so layers may be
dealt out in any way, and the bits of a logit are the same: every product is computed whole by one stage, and hidden
rows are float32 between them.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.errors import StageLostError, UsageError
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.models.logits import Logits
from penstock.models.pass_stats import PartStats, PassStats
from penstock.models.pipeline import LEAST_ROWS, chunk_rows, pipelined
from penstock.models.stage import Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from penstock.compute.kernels import F32, U8
    from penstock.events import Events
    from penstock.models.kv_cache import Blocks, KvCache, Outbox
    from penstock.models.rows import Rows
    from penstock.models.stage import Need, OnLayer, Share, Tier


class StageLike(Protocol):
    """A stage, here or elsewhere."""

    on_layer: OnLayer | None
    remote: bool
    """Whether it is in another process."""

    @property
    def share(self) -> Share: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def streamed_bytes(self) -> int:
        """Bytes that its next pass would read."""

    def run(self, step: Step, x: F32 | None = None) -> tuple[F32 | Logits | None, tuple[PartStats, ...]]: ...
    def read_slots(self, blocks: Sequence[int], first: int, end: int) -> U8: ...
    def write_slots(self, blocks: Sequence[int], first: int, data: U8) -> None: ...
    def read_block(self, block: int) -> U8: ...
    def write_block(self, block: int, data: U8) -> None: ...


@dataclass(frozen=True, slots=True)
class _Leg:
    """Layers that follow one another in one stage; before or after them maybe embedding and head."""

    stage: StageLike
    layers: tuple[int, ...] = ()
    embed: bool = False
    head: bool = False


class Chain:
    """The stages of a model."""

    def __init__(
        self, stages: Sequence[StageLike], layers: int, vocab_size: int, blocks: Blocks, events: Events
    ) -> None:
        """`blocks`: names those of every cache. Raises UsageError unless the stages have each of `layers` layers, the
        embedding and the head once."""
        self.stages = tuple(stages)
        self.blocks = blocks
        self.vocab_size = vocab_size
        self.events = events
        self._legs = _legs(self.stages, layers)
        self._layers = layers
        self._busy = False
        """Whether rows are on their way."""

    @property
    def streamed_bytes(self) -> int:
        """Bytes that the next pass would read."""
        return sum(stage.streamed_bytes for stage in self.stages)

    def run(self, rows: Rows, need: Need | None = None) -> tuple[F32, PassStats]:
        """As `run_pass`, where all want all logits: float32 [len(rows.wanted), vocab_size]."""
        logits, stats = self.run_pass(rows, need)
        return logits.whole, stats

    def run_pass(self, rows: Rows, need: Need | None = None) -> tuple[Logits, PassStats]:
        """One pass over the weights: the logits of the rows that want them.

        Keys and values of all rows are in their caches afterwards, in slots that the caller commits. The head is not
        read where no row wants logits. `need`: what every stage makes room for first. Raises ReadError, FormatError,
        MemoryCeilingError.
        """
        begin, head = time.perf_counter(), len(rows.wanted) > 0
        try:
            x, parts = self._through([replace(leg, head=leg.head and head) for leg in self._legs], rows, need)
        finally:
            end = time.perf_counter()
            self.events.tell("pass", f"{len(rows)} row{'s' * (len(rows) != 1)}", begin, end)
        logits = x if isinstance(x, Logits) else Logits.none(self.vocab_size)
        return logits, PassStats(len(rows), parts, end - begin, end - begin)

    def hidden(self, rows: Rows, layers: Sequence[int], tier: Tier = "exact") -> F32:
        """Hidden rows [n, hidden_size] after some of the layers."""
        legs = (
            replace(leg, layers=tuple(layer for layer in leg.layers if layer in layers), head=False)
            for leg in self._legs
        )
        x, _ = self._through([leg for leg in legs if leg.embed or leg.layers], rows, None, tier)
        return _hidden(x)

    def _through(
        self, legs: Sequence[_Leg], rows: Rows, need: Need | None, tier: Tier = "exact"
    ) -> tuple[F32 | Logits, tuple[PartStats, ...]]:
        parts: list[PartStats] = []
        self._busy = True
        try:
            if self._pays_in_chunks(len(rows)):
                return self._in_chunks(legs, rows, need, tier)
            x: F32 | Logits | None = None
            told: set[StageLike] = set()
            for leg in legs:
                asked = None if leg.stage in told else need
                told.add(leg.stage)
                before = None if x is None else _hidden(x)
                x, took = _run(leg.stage, Step((), asked, rows, leg.embed, leg.layers, leg.head, tier), before)
                parts += took
        finally:
            self._busy = False
        if x is None:
            raise ValueError("no stage embeds")
        return x, tuple(parts)

    def _pays_in_chunks(self, rows: int) -> bool:
        """Whether stages in several processes had better work at the same time; weights that are streamed would be
        read for each chunk."""
        several = any(stage.remote for stage in self.stages)
        return several and rows >= 2 * LEAST_ROWS and not self.streamed_bytes

    def _in_chunks(
        self, legs: Sequence[_Leg], rows: Rows, need: Need | None, tier: Tier
    ) -> tuple[F32 | Logits, tuple[PartStats, ...]]:
        """As `_through`: chunks go through all but the head one after the other, in several stages at a time."""
        if need is not None:
            self.make_room(need)
        chunks = rows.chunks(chunk_rows(len(rows), len(self.stages)))
        body = [replace(leg, head=False) for leg in legs if leg.embed or leg.layers]
        took: list[list[tuple[PartStats, ...]]] = [[() for _ in body] for _ in chunks]
        locks = {stage: threading.Lock() for stage in self.stages}

        def run(chunk: int, at: int, before: F32 | None) -> F32:
            leg = body[at]
            with locks[leg.stage]:
                x, took[chunk][at] = _run(
                    leg.stage, Step((), None, chunks[chunk], leg.embed, leg.layers, False, tier), before
                )
            return _hidden(x)

        x: F32 | Logits = np.concatenate(pipelined(len(chunks), len(body), run))
        parts = [part for at in range(len(body)) for part in _summed([own[at] for own in took])]
        for leg in legs:
            if leg.head:
                end, said = _run(leg.stage, Step((), None, rows, False, (), True, tier), _hidden(x))
                x, parts = _told(end), [*parts, *said]
        return x, tuple(parts)

    def make_room(self, need: Need) -> None:
        """Make room for a pass that is to come, and for guessing before it. Raises MemoryCeilingError."""
        for stage in self.stages:
            _run(stage, Step(need=need))

    def settle(self) -> None:
        """Have every stage do to its caches what is still to be done, so that memory is free though no pass follows.

        While rows are on their way it waits for the next call: they may be of a cache that has just been given up.
        """
        if self._busy:
            return
        for stage in self.stages:
            if stage.outbox.pending():
                # What is lost has nothing to be done to; it is told when its layers are needed.
                with suppress(StageLostError):
                    _run(stage, Step())

    def read_slot(self, cache: KvCache, slot: int) -> bytes:
        """One slot's keys and values, [layers][key, value][kv_heads][head_dim] of all layers."""
        return next(self.read_slots(cache, slot, slot + 1))

    def read_slots(self, cache: KvCache, first: int, end: int) -> Iterator[bytes]:
        """As `read_slot`, one after the other of [first, end)."""
        blocks = cache.block_names
        for begin in range(first, end, BLOCK_SLOTS):
            self.settle()
            last = min(begin + BLOCK_SLOTS, end)
            layers: dict[int, U8] = {}
            for stage in self.stages:
                data = stage.read_slots(blocks, begin, last)
                layers |= {layer: data[:, index] for index, layer in enumerate(stage.share.layers)}
            for index in range(last - begin):
                yield b"".join(layers[layer][index].tobytes() for layer in range(self._layers))

    def append_slot(self, cache: KvCache, data: bytes) -> None:
        """Commit what `read_slot` gave as the next position of a cache, in place of what was uncommitted there."""
        self.append_slots(cache, [data])

    def append_slots(self, cache: KvCache, slots: Iterable[bytes]) -> None:
        """As `append_slot`, one after the other."""
        while batch := list(islice(slots := iter(slots), BLOCK_SLOTS)):
            cache.reserve(cache.length + len(batch))
            self.settle()
            planes = np.stack([np.frombuffer(data, np.uint8) for data in batch]).reshape(len(batch), self._layers, -1)
            for stage in self.stages:
                stage.write_slots(cache.block_names, cache.length, planes[:, list(stage.share.layers)])
            cache.length += len(batch)

    def read_block(self, cache: KvCache, index: int) -> list[U8]:
        """Keys and values of the block of that number of a cache: of each layer uint8 [bytes of a layer], which are
        [key, value][kv_heads][BLOCK_SLOTS][head_dim]. Valid until anything else is asked of the stages."""
        self.settle()
        layers: dict[int, U8] = {}
        for stage in self.stages:
            layers |= dict(zip(stage.share.layers, stage.read_block(cache.block_names[index]), strict=True))
        return [layers[layer] for layer in range(self._layers)]

    def append_block(self, cache: KvCache, data: U8) -> None:
        """Commit what `read_block` gave, layer after layer, as the next BLOCK_SLOTS positions of a cache, which has
        whole blocks."""
        cache.reserve(cache.length + BLOCK_SLOTS)
        self.settle()
        planes, name = data.reshape(self._layers, -1), cache.block_names[cache.length // BLOCK_SLOTS]
        for stage in self.stages:
            stage.write_block(name, planes[list(stage.share.layers)])
        cache.length += BLOCK_SLOTS


def _hidden(x: F32 | Logits | None) -> F32:
    if x is None or isinstance(x, Logits):
        raise TypeError("a stage went on after the head")
    return x


def _told(x: F32 | Logits | None) -> Logits:
    if not isinstance(x, Logits):
        raise TypeError("a head told no logits")
    return x


def _summed(chunks: Sequence[Sequence[PartStats]]) -> list[PartStats]:
    """Of the parts of a leg, what they took for all chunks."""
    return [reduce(PartStats.plus, parts) for parts in zip(*chunks, strict=True)]


def _run(stage: StageLike, step: Step, x: F32 | None = None) -> tuple[F32 | Logits | None, tuple[PartStats, ...]]:
    """Run a stage, which does to its caches first what is still to be done."""
    ops = stage.outbox.pending()
    done = stage.run(replace(step, ops=ops), x)
    stage.outbox.done(ops)
    return done


def _legs(stages: Sequence[StageLike], layers: int) -> list[_Leg]:
    held = sorted(layer for stage in stages for layer in stage.share.layers)
    embeds, heads = [s for s in stages if s.share.embedding], [s for s in stages if s.share.head]
    if held != list(range(layers)) or len(embeds) != 1 or len(heads) != 1:
        raise UsageError(
            f"The stages do not hold each of {layers} layers, the embedding and the head once.", "Cut it otherwise."
        )
    owners = {layer: stage for stage in stages for layer in stage.share.layers}
    legs = [_Leg(embeds[0], embed=True)]
    for layer in range(layers):
        if owners[layer] is legs[-1].stage:
            legs[-1] = replace(legs[-1], layers=(*legs[-1].layers, layer))
        else:
            legs.append(_Leg(owners[layer], (layer,)))
    if heads[0] is legs[-1].stage:
        return [*legs[:-1], replace(legs[-1], head=True)]
    return [*legs, _Leg(heads[0], head=True)]
