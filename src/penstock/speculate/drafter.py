"""What every source of guesses has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.models.logits import Likeliest
    from penstock.speculate.tree import Tree

MOST_GUESSES = 8
"""Guesses at one token."""


class Guess(NamedTuple):
    """A token that may come next, and the drafter's own opinion of the chance that it does, above 0 and at most 1."""

    token: int
    score: float


class Drafter(Protocol):
    """Guesses the children of nodes. What it says is calibrated, so scores need only be ordered sensibly."""

    @property
    def name(self) -> str: ...
    @property
    def free(self) -> bool:
        """Whether a guess costs next to nothing: then it is asked about every node, else about the best ones."""

    def begin(self, trees: Sequence[Tree]) -> None:
        """Trees of a new pass, of which only the roots are there."""

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        """For each node its guesses at the next token, best first, at most MOST_GUESSES; none where it has no idea."""

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        """After a pass over `tree`: the nodes that the walk came to, and the likeliest tokens after the trunk's end and
        every node behind it."""

    def forget(self, key: object) -> None:
        """The sequence whose trees have this key has ended."""


class DrafterFault(Exception):  # noqa: N818
    """What `drafter` should not have raised is its `__cause__`; it never gets further than to the speculator."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__(drafter.name)
        self.drafter = drafter


def expand(drafter: Drafter, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
    """Ask a drafter. Raises errors of Penstock's as it does, and DrafterFault for all others."""
    try:
        guesses = drafter.expand(nodes)
        if len(guesses) != len(nodes):
            raise ValueError(f"{len(guesses)} lists of guesses for {len(nodes)} nodes")
    except PenstockError:
        raise
    except Exception as error:
        raise DrafterFault(drafter) from error
    return guesses
