"""Which experts of a mixture stay in memory, and where they are read to.

What is known of routing (docs/log.md, "Experts"): training balances it, so no expert of a layer is much more frequent
than others, but neighbouring tokens go to the same ones. Experts that their layer has used last stay, then, and all
layers keep as many: a pass needs each layer just once, so what one layer keeps beyond the others' helps it less.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING

from penstock.disk.files import ALIGNMENT, aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from penstock.compute.kernels import U8


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
        self._kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in layers]
        """By layer, the experts that have room, the one used last at the end."""
        self._buffers: dict[int, U8] = {}
        self._there: set[int] = set()
        """Of the parts that have buffers, those whose bytes are in them."""
        self._spare: defaultdict[int, list[U8]] = defaultdict(list)
        self._budget = self._promised = self._held = 0
        """Bytes that there may be; of the experts that have room; of all buffers, spare ones among them."""

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
        """Where a part is to be read; None where its expert does not stay in memory."""
        expert = self._expert_of(part)
        if expert is None or (expert not in self._kept[self._layer[expert]] and not self._admit(expert)):
            return None
        if part not in self._buffers:
            self._buffers[part] = self._take_buffer(self._room_of(part))
        return self._buffers[part]

    def arrived(self, part: int) -> bool:
        """Told that a part has been read into its buffer: whether it stays in memory."""
        if part not in self._buffers:  # its expert has lost its room meanwhile
            return False
        self._there.add(part)
        return True

    def use(self, parts: Iterable[int]) -> list[int]:
        """A layer is going to take these: its experts that stay from now on get room, and the parts of others, which
        are told, must be forgotten."""
        used = dict.fromkeys(expert for part in parts if (expert := self._expert_of(part)) is not None)
        dropped: list[int] = []
        new = [expert for expert in used if expert not in self._kept[self._layer[expert]]]
        for expert in used.keys() - new:
            self._kept[self._layer[expert]].move_to_end(expert)
        for expert in new:
            while not self._admit(expert) and (victim := self._victim(self._layer[expert], used)) is not None:
                dropped += self._drop(victim)
        return dropped

    def limit(self, budget: int) -> list[int]:
        """Take at most so many bytes: parts that must be forgotten."""
        dropped: list[int] = []
        self._budget = budget
        while self._promised > budget:
            dropped += self._drop(next(iter(self._fullest)))
        self._free_spare(budget)
        return dropped

    def _admit(self, expert: int) -> bool:
        """Give an expert room, if there is any."""
        nbytes = sum(map(self._room_of, self._parts[expert]))
        if self._promised + nbytes > self._budget:
            return False
        self._promised += nbytes
        self._kept[self._layer[expert]][expert] = None
        return True

    def _victim(self, layer: int, used: Collection[int]) -> int | None:
        """The expert to go for one of a layer: of the layer that has the most, if that is more than this one has, else
        of this one, the one used the longest ago; none of `used`."""
        own, most = self._kept[layer], self._fullest
        return next((expert for expert in (most if len(most) > len(own) else own) if expert not in used), None)

    @property
    def _fullest(self) -> OrderedDict[int, None]:
        """Those of the layer that has the most."""
        return max(self._kept, key=lambda kept: len(kept))

    def _drop(self, expert: int) -> list[int]:
        """Take its room from an expert: the parts that it had."""
        del self._kept[self._layer[expert]][expert]
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
        return room_for(self._sizes[part])

    def _expert_of(self, part: int) -> int | None:
        place = bisect_right(self._begins, part) - 1
        return place if place >= 0 and part in self._parts[place] else None
