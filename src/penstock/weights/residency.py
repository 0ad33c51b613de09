"""Which weights stay in memory: orders of which every prefix serves well. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.architectures.base import Architecture

COMMON_SHARE = 0.5
"""Of a vocabulary: has 95 % of the tokens of answers in four languages (docs/log.md)."""


def residency_order(count: int) -> list[int]:
    """Indices 0..count-1 such that every prefix is spread evenly (van der Corput sequence).

    Pinning a prefix leaves the streamed pieces evenly spaced, so that the disk never idles for long; and a smaller
    budget pins a subset of what a larger one does.
    """
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


def draft_order(architecture: Architecture) -> list[str]:
    """The matrices by how much a guess at the next token suffers without them, the most first.

    Without its head a model says nothing, but the rarer tokens it can do without sooner than without any layer: the
    head comes first for the others and last for these (`is_common`). Of the layers, those in the middle are missed
    least (arXiv 2403.03853), and least of all where they are far from one another.
    """
    if architecture.config.experts is not None:  # a guess would need as many of them as the token itself
        return []
    layers = draft_layers(architecture.config.num_hidden_layers)
    of_layers = [name for layer in layers for name in architecture.layer_matrices(layer)]
    return [architecture.head, *of_layers, architecture.head]


def is_common(rows: slice, count: int) -> bool:
    """Whether these rows of a head of `count` are of tokens that texts have often: vocabularies come in the order in
    which their tokens were merged, the most frequent ones first, and the tokens that end turns come last."""
    return bool(rows.start < COMMON_SHARE * count or rows.stop == count)


def draft_layers(count: int) -> list[int]:
    """The layers of a model of `count`, in that order."""
    last = count - 1
    inner = list(range(2, last))
    outer = [layer for layer in (0, 1, last) if 0 <= layer <= last]
    spread = [inner[i] for i in residency_order(len(inner))]
    return [*dict.fromkeys([*outer, *spread])]
