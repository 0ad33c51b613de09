"""Whether a draft model is worth its memory, which the target's weights could have.

Both sides are measured on the same passes: the tokens that came, and those that would have come by the other drafters'
guesses; the seconds that passed, and those without the draft's own time and the reading that its memory would save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.models.pass_stats import PassStats
    from penstock.speculate.tree import Tree

PASSES = 12
"""After so many a verdict is due; then older ones count half."""


@dataclass(slots=True)
class Worth:
    """Of the drafter `name`, which keeps `nbytes` in memory."""

    name: str
    nbytes: int
    _passes: float = 0
    _tokens: float = 0
    _tokens_without: float = 0
    _seconds: float = 0
    _draft_seconds: float = 0
    _saved_seconds: float = 0

    def learn(self, grown: Tree, drawn: Sequence[int], accepted: int) -> None:
        """Take in a walk over a tree, as it was before it was cut, that accepted so many guesses."""
        self._tokens += 1 + accepted
        self._tokens_without += 1
        node: int | None = grown.tip
        for token in drawn:
            node = None if node is None else grown.child(node, token)
            if node is None or all(self.name in (claim.drafter, claim.doubter) for claim in grown.claims[node]):
                return
            self._tokens_without += 1

    def learn_pass(self, stats: PassStats, disk_bound: bool) -> None:
        """Take in a pass's times."""
        self._passes += 1
        self._seconds += stats.seconds
        self._draft_seconds += stats.draft_seconds
        if disk_bound and stats.bytes_read:
            self._saved_seconds += self.nbytes / stats.bytes_read * stats.stage_seconds

    def pays(self) -> bool:
        """False where tokens would come faster without the drafter; True, too, where that is not known yet."""
        if self._passes < PASSES or not self._tokens:
            return True
        seconds_without = self._seconds - self._draft_seconds - self._saved_seconds
        pays = self._tokens / self._seconds >= self._tokens_without / max(seconds_without, 1e-9)
        for name in ("_passes", "_tokens", "_tokens_without", "_seconds", "_draft_seconds", "_saved_seconds"):
            setattr(self, name, getattr(self, name) / 2)
        return pays
