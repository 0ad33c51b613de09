"""Which experts of a mixture stay in memory, and where they are read to.

Training balances routing, so no expert of a layer is much more frequent than others in the long run, but neighbouring
tokens go to the same ones. So those stay that their layer used most of late: a use counts 1, and FADING of that with
each further pass (LRFU: Lee et al., IEEE Transactions on Computers 50, 2001; docs/log.md has it beside other rules).
All layers keep as many: a pass needs each layer just once, so what one keeps beyond the others' helps it less.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from penstock.disk.files import ALIGNMENT, aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from penstock.compute.kernels import U8


FADING = 0.85
"""What a use counts after each further pass of its layer."""


def room_for(nbytes: int) -> int:
    """Bytes of a buffer for a part: in steps of a sixteenth at most, so that one that held an expert's fits another's
    of a slightly different size."""
    step = max(ALIGNMENT, 1 << max(0, nbytes.bit_length() - 5))
    return -(-nbytes // step) * step + ALIGNMENT


class ExpertResidency:
    """As many experts as a budget has room for, in buffers that are used again."""

    def __init__(self, layers: Sequence[Sequence[range]], sizes: Sequence[int]) -> None:
        """`layers`: for each, the parts of each of its experts, ascending; `sizes`: bytes of every part."""
        self._parts = [parts for layer in layers for parts in layer]
        self._begins = [parts.start for parts in self._parts]
        self._layer = [number for number, layer in enumerate(layers) for _ in layer]
        self._layer_sizes = [sum(map(len, layer)) for layer in layers]
        self._sizes = sizes
        self._kept: list[set[int]] = [set() for _ in layers]
        """By layer, the experts that have room."""
        self._uses = [-math.inf] * len(self._parts)
        """Of each expert: the logarithm of what its uses count, as if they had been growing with time in place of
        fading, so that none changes but by a use."""
        self._passes = [0] * len(layers)
        self._buffers: dict[int, U8] = {}
        self._elsewhere: set[int] = set()
        """Parts of experts that have room here, which need none."""
        self._there: set[int] = set()
        """Of the parts that have buffers, those whose bytes are in them."""
        self._spare: defaultdict[int, list[U8]] = defaultdict(list)
        self._budget = self._promised = self._held = 0
        """Bytes that there may be; of the experts that have room; of all buffers, spare ones among them."""

    def __contains__(self, part: int) -> bool:
        """Whether a part is in memory."""
        return part in self._there

    def __len__(self) -> int:
        return sum(map(len, self._kept))

    def parts_beside(self, part: int) -> int:
        """How many parts the experts of a layer have, of which this is one's."""
        expert = self._expert_of(part)
        return 0 if expert is None else self._layer_sizes[self._layer[expert]]

    def count(self, parts: Iterable[int]) -> int:
        """How many experts these are parts of."""
        return len({self._expert_of(part) for part in parts})

    def buffer(self, part: int) -> U8 | None:
        """Where a part is to be read; None where its expert does not stay in memory, or it is there already.

        No two reads share a buffer: one that was begun before may still be under way, and its bytes are nobody's then.
        """
        expert = self._expert_of(part)
        if expert is None or (expert not in self._kept[self._layer[expert]] and not self._admit(expert)):
            return None
        if part in self._there:
            return None
        room = self._room_of(part)
        self._buffers[part] = aligned_buffer(room - ALIGNMENT) if part in self._buffers else self._take_buffer(room)
        return self._buffers[part]

    def arrived(self, part: int, data: U8) -> bool:
        """Told that a part has been read: whether it stays in memory, in the buffer that it has."""
        buffer = self._buffers.get(part)
        if buffer is None or part in self._there or not np.may_share_memory(buffer, data):
            return False  # its expert has lost its room meanwhile, or this is another read
        self._there.add(part)
        return True

    def release(self, parts: Sequence[int]) -> Sequence[int]:
        """Some parts of an expert are kept elsewhere from now on, and must be forgotten here."""
        for part in parts:
            room = self._room_of(part)
            del self._buffers[part]
            self._there.discard(part)
            self._held -= room
            self._promised -= room
            self._elsewhere.add(part)
        return parts

    def recall(self) -> list[int]:
        """Nothing is kept elsewhere any more: what is left here of such experts, which must be forgotten."""
        dropped: list[int] = []
        for expert in {expert for part in self._elsewhere if (expert := self._expert_of(part)) is not None}:
            dropped += self._drop(expert)
        self._elsewhere.clear()
        return dropped

    def use(self, parts: Iterable[int]) -> list[int]:
        """A layer is going to take these: its experts that stay from now on get room, and the parts of others, which
        are told, must be forgotten."""
        used = dict.fromkeys(expert for part in parts if (expert := self._expert_of(part)) is not None)
        dropped: list[int] = []
        for layer in {self._layer[expert] for expert in used}:
            self._passes[layer] += 1
        for expert in used:
            now = -math.log(FADING) * self._passes[self._layer[expert]]
            self._uses[expert] = now + math.log1p(math.exp(self._uses[expert] - now))
        for expert in used:
            if expert in self._kept[self._layer[expert]]:
                continue
            while not self._admit(expert) and (victim := self._victim(expert, used)) is not None:
                dropped += self._drop(victim)
        return dropped

    def limit(self, budget: int) -> list[int]:
        """Take at most so many bytes: parts that must be forgotten."""
        dropped: list[int] = []
        self._budget = budget
        while self._promised > budget:
            dropped += self._drop(min(self._fullest, key=self._rank))
        self._free_spare(budget)
        return dropped

    def _admit(self, expert: int) -> bool:
        """Give an expert room, if there is any."""
        nbytes = sum(map(self._room_of, self._parts[expert]))
        if self._promised + nbytes > self._budget:
            return False
        self._promised += nbytes
        self._kept[self._layer[expert]].add(expert)
        return True

    def _victim(self, expert: int, used: Collection[int]) -> int | None:
        """The one to go for an expert: of the layer that has the most, if that is more than its own layer has; else of
        its own, if that counts less than it does; none of `used`."""
        own, most = self._kept[self._layer[expert]], self._fullest
        others = (most if len(most) > len(own) else own).difference(used)
        least = min(others, key=self._rank, default=None)
        return None if least is None or (most is own and self._rank(least) > self._rank(expert)) else least

    def _rank(self, expert: int) -> tuple[float, int]:
        """What its uses count, to be compared within its layer; of equal ones any."""
        return self._uses[expert], expert

    @property
    def _fullest(self) -> set[int]:
        """Those of the layer that has the most."""
        return max(self._kept, key=lambda kept: len(kept))

    def _drop(self, expert: int) -> list[int]:
        """Take its room from an expert: the parts that it had."""
        self._kept[self._layer[expert]].remove(expert)
        self._promised -= sum(map(self._room_of, self._parts[expert]))
        had = [part for part in self._parts[expert] if part in self._buffers]
        for part in had:
            room, buffer = self._room_of(part), self._buffers.pop(part)
            if part in self._there:
                self._spare[room].append(buffer)
            else:  # it may be being read into
                self._held -= room
        self._there.difference_update(had)
        return had

    def _take_buffer(self, room: int) -> U8:
        if self._spare[room]:
            return self._spare[room].pop()
        self._free_spare(self._budget - room)
        self._held += room
        return aligned_buffer(room - ALIGNMENT)

    def _free_spare(self, most: int) -> None:
        """Give spare buffers back to the system until at most so many bytes are held."""
        for room, buffers in self._spare.items():
            while buffers and self._held > most:
                buffers.pop()
                self._held -= room

    def _room_of(self, part: int) -> int:
        return 0 if part in self._elsewhere else room_for(self._sizes[part])

    def _expert_of(self, part: int) -> int | None:
        place = bisect_right(self._begins, part) - 1
        return place if place >= 0 and part in self._parts[place] else None
