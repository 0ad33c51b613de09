"""What one pass computes: a set of rows, each a (token, position, path in a sequence's KV cache).

Prefill chunks, single tokens, batches of sequences and token trees are all just rows. A row's path is the list of cache
slots that it attends to, in the order of their logical positions: a `prefix` (slots 0..prefix-1) and then a `tail` of
slots named one by one. A plain row at position p has prefix p + 1 and no tail; a node of a token tree has the
committed prefix, and its ancestors and itself as the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.kernels import I32, I64
    from penstock.models.kv_cache import KvCache

    RowIndex: TypeAlias = slice | I32
    """Rows of a pass: beside each other, or one by one, ascending."""


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """The rows of one sequence: arrays of length n, but for the ragged tails."""

    blocks: tuple[int, ...]
    """Those of its cache, by name: slot s is in the block at s // BLOCK_SLOTS."""
    tokens: I64
    positions: I64
    slots: I32
    prefix: I32
    tail_offsets: I32
    tail_slots: I32
    wanted: I64
    """Indices of the rows whose logits are wanted, ascending."""
    likeliest: bool = False
    """Whether no more is wanted of them than which tokens are likeliest."""
    targets: I64 | None = None
    """Or no more than how likely these tokens are, one for each wanted row,"""
    top: int = 0
    """and so many of the likeliest ones."""
    first_whole: bool = False
    """Whether all is wanted of the first of them in any case."""
    adapter: str | None = None
    """The adapter that they go through, by name: that of the cache."""

    @classmethod
    def plain(cls, cache: KvCache, tokens: Sequence[int], wanted: Sequence[int] = (-1,)) -> SequenceRows:
        """`tokens` follow the committed positions; `wanted` may count from the end, as indices do."""
        n = len(tokens)
        slots = np.arange(cache.length, cache.length + n, dtype=np.int32)
        cache.reserve(cache.length + n)
        return cls(
            blocks=tuple(cache.block_names),
            tokens=np.asarray(tokens, np.int64),
            positions=slots.astype(np.int64),
            slots=slots,
            prefix=slots + np.int32(1),
            tail_offsets=np.zeros(n + 1, np.int32),
            tail_slots=np.empty(0, np.int32),
            wanted=np.arange(n)[list(wanted)],
            adapter=cache.adapter,
        )

    @classmethod
    def tree(
        cls,
        cache: KvCache,
        tokens: Sequence[int],
        parents: Sequence[int],
        likeliest: bool = False,
        *,
        first_whole: bool = False,
        tip: int = 0,
    ) -> SequenceRows:
        """A tree of tokens after the committed positions: parents[i] < i is a row of the same tree, -1 the root's.

        Logits are wanted of row `tip` and of all behind it, or the `likeliest` tokens.
        """
        paths: list[list[int]] = []
        for node, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), cache.length + node])
        rows = cls.nodes(cache, tokens, paths)
        return replace(rows, wanted=rows.wanted[tip:], likeliest=likeliest, first_whole=first_whole)

    @classmethod
    def nodes(cls, cache: KvCache, tokens: Sequence[int], paths: Sequence[Sequence[int]]) -> SequenceRows:
        """Some nodes of a tree: paths[i] are the slots of row i's ancestors after the committed positions, and its own.

        Own slots ascend. Logits are wanted of every row.
        """
        n = len(tokens)
        cache.reserve(paths[-1][-1] + 1)
        return cls(
            blocks=tuple(cache.block_names),
            tokens=np.asarray(tokens, np.int64),
            positions=np.array([cache.length + len(path) - 1 for path in paths], np.int64),
            slots=np.array([path[-1] for path in paths], np.int32),
            prefix=np.full(n, cache.length, np.int32),
            tail_offsets=np.cumsum([0, *map(len, paths)], dtype=np.int32),
            tail_slots=np.array([slot for path in paths for slot in path], np.int32),
            wanted=np.arange(n),
            adapter=cache.adapter,
        )

    def scoring(self, targets: Sequence[int], top: int) -> SequenceRows:
        """The same, but that no more is wanted than how likely a token is, one for each wanted row, and which `top`
        tokens are likeliest."""
        return replace(self, targets=np.asarray(targets, np.int64), top=top) if len(targets) else self

    def part(self, first: int, end: int) -> SequenceRows:
        """Rows [first, end), of which no logits are wanted."""
        tails = self.tail_offsets[first : end + 1]
        return replace(
            self,
            tokens=self.tokens[first:end],
            positions=self.positions[first:end],
            slots=self.slots[first:end],
            prefix=self.prefix[first:end],
            tail_offsets=tails - tails[0],
            tail_slots=self.tail_slots[tails[0] : tails[-1]],
            wanted=np.empty(0, np.int64),
            targets=None,
            first_whole=False,
        )

    def __len__(self) -> int:
        return len(self.tokens)


class Rows:
    """All rows of a pass, sequence after sequence."""

    def __init__(self, sequences: Sequence[SequenceRows]) -> None:
        self.sequences = tuple(sequences)
        self.tokens = np.concatenate([s.tokens for s in sequences])
        self.positions = np.concatenate([s.positions for s in sequences])
        ends = np.cumsum([0, *map(len, sequences)])
        self.spans = [slice(int(begin), int(end)) for begin, end in pairwise(ends)]
        self.wanted = np.concatenate(
            [s.wanted + span.start for s, span in zip(self.sequences, self.spans, strict=True)]
        )
        self.likeliest = np.repeat([s.likeliest for s in self.sequences], [len(s.wanted) for s in self.sequences])
        firsts = np.cumsum([0, *(len(s.wanted) for s in self.sequences)])[:-1]
        self.likeliest[[first for first, s in zip(firsts, self.sequences, strict=True) if s.first_whole]] = False
        """Which of the wanted ones want no more than the likeliest tokens: bool, as long as `wanted`."""
        scored = [s.targets for s in self.sequences if s.targets is not None]
        self.targets = np.concatenate(scored) if scored else np.empty(0, np.int64)
        """Of the wanted ones of which no more is wanted than how likely a token is, which token."""
        self.scored = np.repeat(
            [s.targets is not None for s in self.sequences], [len(s.wanted) for s in self.sequences]
        )
        """Which these are: bool, as long as `wanted`."""
        self.top = max(s.top for s in self.sequences)

    def __len__(self) -> int:
        return len(self.tokens)

    def chunks(self, count: int) -> list[Rows]:
        """The same rows in several parts of `count` rows, in their order, of which no logits are wanted."""
        parts: list[list[SequenceRows]] = []
        room = 0
        for sequence in self.sequences:
            first = 0
            while first < len(sequence):
                if not room:
                    parts.append([])
                    room = count
                end = min(len(sequence), first + room)
                parts[-1].append(sequence.part(first, end))
                room -= end - first
                first = end
        return [Rows(part) for part in parts]

    def by_adapter(self) -> dict[str, RowIndex]:
        """Which rows go through which adapter; those that go through none are left out."""
        spans: dict[str, list[slice]] = {}
        for sequence, span in zip(self.sequences, self.spans, strict=True):
            if sequence.adapter is not None and len(sequence):
                spans.setdefault(sequence.adapter, []).append(span)
        return {name: _joined(own) for name, own in spans.items()}


def _joined(spans: Sequence[slice]) -> RowIndex:
    """All rows of some spans, which ascend."""
    if all(first.stop == second.start for first, second in pairwise(spans)):
        return slice(spans[0].start, spans[-1].stop)
    return np.concatenate([np.arange(span.start, span.stop, dtype=np.int32) for span in spans])
