"""Parts of pieces, the unit of reading and of residency, and which of them are to stay in memory first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.weights.residency import is_common, residency_order

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from penstock.disk.files import Extent
    from penstock.weights.pieces import Piece


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of a piece."""

    piece: Piece
    index: int

    @property
    def extent(self) -> Extent:
        return self.piece.extents[self.index]

    @property
    def nbytes(self) -> int:
        return self.extent.nbytes

    @property
    def coarse(self) -> bool:
        return self.index == 0 and len(self.piece.extents) == 2

    @property
    def drafts(self) -> bool:
        return self.index == 0 and self.piece.drafts


def draft_ranks(parts: Sequence[Part], order: Sequence[str]) -> tuple[dict[int, int], set[int]]:
    """By part that guesses are made with: its place in `order`; and the parts whose place is not the first of their
    matrix."""
    first = {name: rank for rank, name in reversed([*enumerate(order)])}
    last = {name: rank for rank, name in enumerate(order)}
    rows = {part.piece.name: part.piece.rows.stop for part in parts}
    drafting = {i: part.piece for i, part in enumerate(parts) if part.drafts and part.piece.name in first}
    spare = {i for i, piece in drafting.items() if first[piece.name] < last[piece.name]}
    spare -= {i for i in spare if is_common(drafting[i].rows, rows[drafting[i].name])}
    return {i: (last if i in spare else first)[piece.name] for i, piece in drafting.items()}, spare


def priority(
    parts: Sequence[Part], draft: Mapping[int, int], experts: Collection[int], first: Collection[str] = ()
) -> list[int]:
    """The order in which parts become resident: those that guesses are made with, by need; those of the matrices
    `first`; then what is left of the coarse tier, and of the rest, every prefix of either spread evenly. Those of
    experts come when they are needed."""
    needed = sorted(draft, key=lambda index: (draft[index], index))
    others = [i for i in range(len(parts)) if i not in draft and i not in experts]
    early = [i for i in others if parts[i].piece.name in first]
    late = [i for i in others if parts[i].piece.name not in first]
    tiers = ([i for i in late if parts[i].coarse is coarse] for coarse in (True, False))
    return [*needed, *early, *(tier[i] for tier in tiers for i in residency_order(len(tier)))]
