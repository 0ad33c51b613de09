"""Who is told how far a batch is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.batch.progress import Progress


class Watcher:
    """Is told how far a batch is; this one does nothing with it."""

    def scanning(self, done: int, total: int) -> None:
        """The requests are looked through: bytes."""

    def opening(self) -> None:
        """The model is being opened."""

    def working(self, progress: Progress, layers: int) -> None:
        """The passes begin, each of so many layers."""

    def layer(self, index: int) -> None:
        """A layer of a pass is done, where the passes run in this process."""

    def passed(self) -> None:
        """A pass is done."""

    def lost(self, name: str, reason: str) -> None:
        """A machine does not take part any more."""
