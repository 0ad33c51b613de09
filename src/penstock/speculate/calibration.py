"""How often guesses are right, learned as they are checked: by drafter, depth in the tree, and the drafter's score.

A guess counts where its parent was reached, so every share is a conditional one. Old experience fades, since texts
change. What is known of all depths is the start for each, and the drafter's own score the start for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.speculate.tree import Claim, Tree

ANY = 10_000
"""The bucket of whether any guess at a token was right."""
SCORE_WEIGHT, DEPTH_WEIGHT = 3.0, 12.0
"""Guesses that the drafter's own score is worth, and the share at all depths."""
UNTRIED = 0.8
"""What is expected of all guesses at a token together, of a drafter that was never checked."""
DOUBTED = 0.1
"""What a guess keeps of its score where a better drafter guesses otherwise."""
FADING = 0.995
"""What a bucket's experience keeps of its weight with each guess."""
BUCKETS_A_LOGIT = 1.0


@dataclass(slots=True)
class _Share:
    right: float = 0.0
    all: float = 0.0

    def add(self, right: bool) -> None:
        self.right = self.right * FADING + right
        self.all = self.all * FADING + 1

    def blend(self, prior: float, weight: float) -> float:
        return (self.right + weight * prior) / (self.all + weight)


@dataclass(slots=True)
class Calibration:
    """What the guesses so far were worth."""

    _shares: dict[tuple[str, int, int], _Share] = field(default_factory=dict)

    def chance(self, claim: Claim, depth: int) -> float:
        """The chance that a guess at `depth` (1: the root's child) is right, if its parent is."""
        prior = min(claim.score, 1.0) * (DOUBTED if claim.doubter else 1.0)
        return self._chance(_who(claim), depth, _bucket(claim.score), prior)

    def chance_of_any(self, drafter: str, depth: int) -> float:
        """The chance that one of a drafter's guesses at a token is right."""
        return self._chance(drafter, depth, ANY, UNTRIED)

    def _chance(self, drafter: str, depth: int, bucket: int, prior: float) -> float:
        at_all = self._shares.get((drafter, 0, bucket), _Share())
        at_depth = self._shares.get((drafter, _band(depth), bucket), _Share())
        return at_depth.blend(at_all.blend(prior, SCORE_WEIGHT), DEPTH_WEIGHT)

    def learn(self, tree: Tree, drawn: Sequence[int]) -> None:
        """Take in what was drawn after the trunk, as far as the tree knew it and once more."""
        node: int | None = tree.tip
        for depth, token in enumerate(drawn, 1):
            if node is None:
                return
            right: dict[str, bool] = {}
            for child in tree.children(node):
                for claim in tree.claims[child]:
                    hit = tree.tokens[child] == token
                    self._learn(_who(claim), depth, _bucket(claim.score), hit)
                    right[_who(claim)] = hit or right.get(_who(claim), False)
            for drafter, hit in right.items():
                self._learn(drafter, depth, ANY, hit)
            node = tree.child(node, token)

    def _learn(self, drafter: str, depth: int, bucket: int, right: bool) -> None:
        for band in (0, _band(depth)):
            self._shares.setdefault((drafter, band, bucket), _Share()).add(right)


def _who(claim: Claim) -> str:
    return f"{claim.drafter} against {claim.doubter}" if claim.doubter else claim.drafter


def _bucket(score: float) -> int:
    """Scores by their log-odds, in whole steps."""
    score = min(max(score, 1e-4), 1 - 1e-4)
    return round(BUCKETS_A_LOGIT * math.log(score / (1 - score)))


def _band(depth: int) -> int:
    """Depths 1, 2, 3 to 4, 5 to 8, ...; never 0."""
    return (depth - 1).bit_length() + 1
