"""Sharing out a memory ceiling: what the process needs in any case, and what is left for resident weights.

Pure functions of numbers: (the model, the process, the ceiling, a pass) to a frozen plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.architectures.base import SCORED_AT_ONCE
from penstock.disk.files import ALIGNMENT
from penstock.disk.reader import Ring
from penstock.errors import ContextError, MemoryCeilingError
from penstock.system.sizes import MIB, format_bytes

if TYPE_CHECKING:
    from penstock.architectures.base import Architecture
    from penstock.architectures.config import ModelConfig
    from penstock.weights.sizes import StoredSize

ALLOWANCE_BYTES = 24 * MIB
"""For what is not counted one by one: the Python heap as it grows, malloc's slack, thread stacks, the kernel's own."""
RING_DEPTH, RING_READS = 12, 8
RING_SHARE = 6
"""The reader's ring takes this part of the ceiling, up to MOST_RING_BYTES."""
LEAST_RING_BYTES, MOST_RING_BYTES = 6 * MIB, 64 * MIB
RAW_FILL, PACKED_FILL = 0.8, 0.7
"""Of the ring's buffers, what the parts of pieces fill, about (docs/log.md): the last of a matrix is smaller than the
others, and those of the coarse tier than those of the fine."""
GUESS_SHARE = 0.05
"""Of the ceiling: what guesses may take of the weights' room, which a pass then reads besides."""
ENOUGH_GUESSES = 64
MOST_MISSING = 0.25
"""Of the weights that guesses are made with: with fewer they would be made in vain."""
LEAST_RANK = 8
"""Of corrections, where there is little room: by then they bring most of what they can."""
LEAST_CHUNK_ROWS = 32
"""Rows of a prompt that a pass has room for at least: in smaller chunks it would cost too many passes."""

RAW_WEIGHT_BYTES, FINE_WEIGHT_BYTES = 2.0, 0.875
"""The least that a weight takes of a piece's larger part: as it is, and in the fine tier of packed weights."""

WIRE_COPIES = 2
"""Of hidden rows that go from a process to another, beside what computing takes, which is free by then."""
UNPACKED_PIECES = 3
"""Buffers of the ring that an unpacked piece takes the room of."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a pass asks for besides weights."""

    rows: int = 1
    logit_rows: int = 1
    """Rows whose logits are computed."""
    kv: int = 0
    """Bytes of every KV cache, with what the pass adds to them."""
    ranked_rows: int = 0
    """Rows of which only the likeliest tokens are told."""
    scored_rows: int = 0
    """Rows of which only scores are told."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What stays the same from pass to pass of an open model, in bytes."""

    architecture: Architecture
    weights: int
    """All matrices that a pass needs."""
    ceiling: int
    process: int
    """The interpreter with its libraries, the tokenizer and the small tensors."""
    scratch: int
    """Working memory of the kernels."""
    chunk: int = 0
    """The largest chunk of packed weights, which every buffer of the ring must hold; 0 where nothing is packed."""
    indexed: int = 0
    """What all weights take in the form that is quickest to multiply with; 0 where there is none."""
    draft: int = 0
    """What guessing takes: a draft model, tables, and the rows that go through it."""
    head: bool = True
    """Whether logits are computed here."""
    adapters: int = 0
    """Adapters, which are in memory whole."""
    adapter_rank: int = 0
    """The highest; 0 where there are none."""
    remote: bool = False
    """Whether hidden rows come from other processes and go there."""
    experts: int = 0
    """Of the weights, those of experts."""
    hit_rate: float = 0.0
    """How often an expert that is needed is in memory, at least; it is as often as its share of all is, in any case."""
    window: int = 0
    """What the ring is to hold at least, of a stage with many turns in a pass."""

    def storing(self, size: StoredSize) -> Budget:
        """The same for weights that are stored so."""
        return replace(self, weights=size.nbytes, chunk=size.chunk, indexed=size.indexed, experts=size.experts)

    @property
    def ring(self) -> Ring:
        return choose_ring(self.ceiling, self.chunk, self.window)

    def plan(self, demand: Demand) -> Plan:
        """How the ceiling is shared out in such a pass: weights stay resident where nothing else needs the room.

        Raises MemoryCeilingError, naming the least ceiling that works, where the rest alone is more than the ceiling.
        """
        activations = self._activations(demand.rows, demand.logit_rows, demand.ranked_rows, demand.scored_rows)
        needs = self._fixed + demand.kv + activations
        if needs > self._usable:
            least = format_bytes(self._least_ceiling(needs))
            raise MemoryCeilingError(
                f"A memory ceiling of {self.ceiling // MIB} MiB is too small for this model and prompt.",
                f"The least that works is {least}: raise --memory or shorten the prompt.",
            )
        room = self._usable - needs
        # A piece is unpacked before it is indexed.
        indexes = 0 < self.indexed <= room - UNPACKED_PIECES * self.ring.piece_bytes
        resident = self.indexed if indexes else min(self.weights, room)
        dense = self.weights - self.experts
        away = 0 if indexes else self.experts - max(0, resident - dense)
        plan = Plan(
            ceiling=self.ceiling,
            process=self.process,
            scratch=self.scratch,
            draft=self.draft,
            adapters=self.adapters,
            ring=self.ring.nbytes,
            allowance=allowance(self.ceiling),
            kv=demand.kv,
            activations=activations,
            resident=resident,
            streamed=0,
            indexed=self.weights if indexes else 0,
            idle=0 if indexes else self.weights - resident,
            experts=self.experts,
            hit_rate=max(self.hit_rate, 1 - away / self.experts) if self.experts else 0.0,
        )
        streamed = plan.streamed_with(self.architecture.expert_share(demand.rows))
        return replace(plan, streamed=streamed, idle=plan.idle - streamed)

    def holds_all(self) -> bool:
        """Whether all weights stay in memory in a pass of one row. False, too, where nothing fits."""
        try:
            return self.plan(Demand()).streamed == 0
        except MemoryCeilingError:
            return False

    def least_ceiling(self, missing: int) -> int:
        """The least ceiling under which there are `missing` bytes more than under this one."""
        return self._least_ceiling(self._usable + missing)

    def most_rows(self, kv: int, logit_rows: int, all_logits: bool = False, scored: bool = False) -> int:
        """The longest chunk, in rows, that fits beside `kv` bytes and the logits of `logit_rows` rows, and with its own
        logits where `all_logits`, or scores where `scored`; 0 or less where none does."""
        at_once = SCORED_AT_ONCE * scored
        without = self._fixed + kv + self._activations(0, logit_rows, 0, at_once)
        row = self._activations(1, int(all_logits), 0, at_once + scored) - self._activations(0, 0, 0, at_once)
        return (self._usable - without) // row

    @property
    def row_bytes(self) -> int:
        """What a row of a chunk takes whose logits are not wanted."""
        return self._activations(1, 0) - self._activations(0, 0)

    def most_guesses(
        self, kv: int, rows: int, logit_rows: int, slot_bytes: int, wanted: int, logits: bool = True
    ) -> int:
        """Rows that fit beside a pass of `rows` rows, each with a slot of the KV cache, and its `logits` where all are
        wanted.

        Of the ceiling they may take GUESS_SHARE; and more than ENOUGH_GUESSES do not displace what guesses are made
        with, `wanted` bytes, unless too little of that fits to be of use.
        """
        room = self._usable - self._fixed - kv - self._activations(rows, logit_rows)
        each = self._activations(1, int(logits), int(not logits)) - self._activations(0, 0) + slot_bytes
        most = min(room, int(self.ceiling * GUESS_SHARE)) // each
        if room > (1 - MOST_MISSING) * wanted:
            most = min(most, max((room - wanted) // each, ENOUGH_GUESSES))
        return max(0, most)

    def correction_rank(self, wanted: int, component: int, most: int, kv: int) -> int:
        """How many components of the corrections of what guesses are made with are worth their room: `component` bytes
        each, for all matrices together, of `most` that there are.

        They do not displace the `wanted` bytes that they correct beside ENOUGH_GUESSES and `kv` bytes of keys and
        values, but for LEAST_RANK of them; and there are none where too little of that fits to be of use.
        """
        room = self._usable - self._fixed - kv - self._activations(1 + ENOUGH_GUESSES, 1, ENOUGH_GUESSES)
        if room < (1 - MOST_MISSING) * wanted:
            return 0
        return min(most, max(LEAST_RANK, (room - wanted) // max(1, component)))

    def most_kv(self, sequences: int) -> int:
        """Bytes of KV that fit beside a chunk of LEAST_CHUNK_ROWS and the logits of so many sequences."""
        activations = self._activations(max(LEAST_CHUNK_ROWS, sequences), sequences)
        return max(0, self._usable - self._fixed - activations)

    def _activations(self, rows: int, logit_rows: int, ranked_rows: int = 0, scored_rows: int = 0) -> int:
        weight_bytes = FINE_WEIGHT_BYTES if self.chunk else RAW_WEIGHT_BYTES
        logits = logit_rows if self.head else None
        nbytes = self.architecture.activation_bytes(rows, logits, self.ring.piece_bytes, weight_bytes, ranked_rows)
        if self.head and scored_rows:
            nbytes += self.architecture.scoring_bytes(scored_rows, self.ring.piece_bytes, weight_bytes)
        if self.remote:
            nbytes += WIRE_COPIES * 4 * rows * self.architecture.config.hidden_size
        if not self.adapter_rank:
            return nbytes
        return nbytes + self.architecture.adapter_bytes(rows, self.adapter_rank, self.ring.piece_bytes, weight_bytes)

    @property
    def _fixed(self) -> int:
        """What every pass leaves as it is."""
        return self.process + self.scratch + self.draft + self.adapters

    @property
    def _usable(self) -> int:
        """What the ceiling leaves beside ring and allowance."""
        return self.ceiling - self.ring.nbytes - allowance(self.ceiling)

    def _least_ceiling(self, needs: int) -> int:
        """The least whole number of MiB that leaves `needs` bytes beside the ring and the allowance that it brings."""
        least = replace(self, ceiling=-(-needs // MIB) * MIB)
        while (missing := needs - least._usable) > 0:
            least = replace(least, ceiling=least.ceiling + -(-missing // MIB) * MIB)
        return least.ceiling


@dataclass(frozen=True, slots=True)
class Plan:
    """How a ceiling is shared out, in bytes: all but `streamed` and `idle` is in memory, at most `ceiling` together.

    `resident` and `streamed` are the weights of a pass, as stored or, where all are resident, in the form that is
    quickest to multiply with; `idle` are those of experts that it is not expected to need; the other parts are as in
    Budget and Demand.
    """

    ceiling: int
    process: int
    scratch: int
    ring: int
    allowance: int
    kv: int
    activations: int
    resident: int
    streamed: int
    draft: int = 0
    adapters: int = 0
    indexed: int = 0
    """What the weights take as stored, where they are resident in the form quickest to multiply with; else 0."""
    idle: int = 0
    experts: int = 0
    """Of all weights, those of experts."""
    hit_rate: float = 0.0
    """Which part of the experts that a pass needs is expected to be in memory."""

    @property
    def weights(self) -> int:
        """All that the model has, as stored."""
        return self.indexed or self.resident + self.streamed + self.idle

    def needed(self, share: float) -> int:
        """Of them, what a pass is multiplied with that needs such a share of the experts."""
        return self.weights - int(self.experts * (1 - share))

    def streamed_with(self, share: float) -> int:
        """What such a pass reads."""
        return self.scanned + self.demanded(share)

    @property
    def scanned(self) -> int:
        """Of that, what every pass reads, in the same order."""
        return 0 if self.indexed else max(0, self.weights - self.experts - self.resident)

    def demanded(self, share: float) -> int:
        """The rest: experts, of which nobody knows before a layer that they are needed there."""
        return 0 if self.indexed else int(self.experts * share * (1 - self.hit_rate))

    def __str__(self) -> str:
        parts = ("process", "scratch", "draft", "adapters", "ring", "allowance", "kv", "activations", "resident")
        told = [name for name in parts if name != "adapters" or self.adapters]
        shares = "\n".join(f"{name:>12} {format_bytes(getattr(self, name)):>11}" for name in told)
        whole, streamed = format_bytes(self.ceiling), format_bytes(self.streamed)
        return f"{shares}\n{'of':>12} {whole:>11}\n{'streamed':>12} {streamed:>11}"


def allowance(ceiling: int) -> int:
    """Bytes for what is not counted one by one; page tables and the kernel's other records grow with the memory."""
    return ALLOWANCE_BYTES + ceiling // 256


def choose_ring(ceiling: int, chunk: int = 0, window: int = 0) -> Ring:
    """The reader's ring: a share of the ceiling, as far as larger reads are faster ones; buffers hold `chunk` bytes,
    and all of them together `window` bytes of parts.

    It grows without jumps, so that raising a ceiling always leaves more for the rest.
    """
    nbytes = min(max(ceiling // RING_SHARE, LEAST_RING_BYTES), MOST_RING_BYTES)
    piece_bytes = max(nbytes // RING_DEPTH // ALIGNMENT * ALIGNMENT, chunk)
    depth = max(RING_DEPTH, -(-int(window / ring_fill(chunk)) // piece_bytes))
    return Ring(depth, piece_bytes, RING_READS)


def ring_fill(chunk: int) -> float:
    """Which part of a ring holds bytes that are read ahead; `chunk` as for choose_ring."""
    return PACKED_FILL if chunk else RAW_FILL


def check_context(wanted: int | None, config: ModelConfig) -> int:
    """The context that was asked for, or the one that is usual for a model. Raises ContextError."""
    trained = config.max_position_embeddings
    if wanted is None:
        return config.usual_context
    if not isinstance(wanted, int) or not 1 < wanted <= trained:
        raise ContextError(
            f"A context of {wanted} is out of range: the model was trained for {trained} positions.",
            f"Give a number from 2 to {trained}.",
        )
    return wanted
