"""What goes between a stage and its host in another process: data, with a hash of it.

TCP's checksum has 16 bits, so one in 65,536 changed packets would pass it.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.compute.kernels import F32, U8
    from penstock.errors import PenstockError
    from penstock.memory.budget import Plan
    from penstock.memory.room import StageBudget
    from penstock.models.logits import Logits
    from penstock.models.pass_stats import PartStats
    from penstock.models.stage import Need, Share, Step

HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host is to hold, and how."""

    model: str
    """As its own machine knows it."""
    share: Share
    context: int
    kv_dtype: str
    ceiling: int | None
    """Bytes that its process may take; None for what its node allows."""
    threads: int | None = None
    adapters: tuple[str, ...] = ()
    max_resident: int | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    """What a host says of itself once its weights are open. All of `alike` has to be the same everywhere."""

    alike: Mapping[str, str]
    """Version, weights, arithmetic, adapters: by what it is called to people."""
    budget: StageBudget
    isa: str
    state: State


@dataclass(frozen=True, slots=True)
class State:
    """How a stage is after a call."""

    streamed_bytes: int
    """Bytes that its next pass would read."""
    resident_bytes: int
    """Weights in memory."""
    plan: Plan
    pressed: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Run a step (models/stage.py)."""

    step: Step
    x: F32 | None


@dataclass(frozen=True, slots=True)
class MakeBeside:
    """Make room beside what is there."""

    need: Need


@dataclass(frozen=True, slots=True)
class ReadSlots:
    """Keys and values of slots [first, end) of a cache's blocks."""

    blocks: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class WriteSlots:
    """Put what `ReadSlots` gave into slots from `first` on."""

    blocks: tuple[int, ...]
    first: int
    data: U8


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """Keys and values of a block, by name."""

    block: int


@dataclass(frozen=True, slots=True)
class WriteBlock:
    """Put what `ReadBlock` gave into a block."""

    block: int
    data: U8


Request = Run | MakeBeside | ReadSlots | WriteSlots | ReadBlock | WriteBlock


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request, and how the stage is after it."""

    value: F32 | Logits | U8 | None
    parts: tuple[PartStats, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Failure:
    """What a request raised."""

    error: PenstockError


@dataclass(frozen=True, slots=True)
class Garbled:
    """A request came with other bytes than were sent, and nothing was done."""


class GarbledError(Exception):
    """Bytes are not those that were sent."""


def packed(message: object) -> bytes:
    """A message, and before it 16 bytes of XXH3 of it."""
    body = pickle.dumps(message, protocol=5)
    return xxhash.xxh3_128_digest(body) + body


def unpacked(data: bytes) -> Any:
    """The message in what `packed` gave. Raises GarbledError, before anything is taken for a message."""
    body = memoryview(data)[HASH_BYTES:]
    if xxhash.xxh3_128_digest(body) != bytes(data[:HASH_BYTES]):
        raise GarbledError
    return pickle.loads(body)
