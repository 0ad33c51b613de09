"""How far a pull is."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.hub.pull import PullWatcher


@dataclass(slots=True)
class PullState(PullWatcher):
    """How far a pull is."""

    words: str = "asking the Hub"
    done: int = 0
    total: int | None = None
    notices: list[str] = field(default_factory=list)

    def file(self, name: str, number: int, count: int) -> None:
        self.words = f"file {number} of {count}"

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def checking(self, name: str) -> None:
        self.words = f"{self.words.removesuffix(', checking')}, checking"

    def notice(self, text: str) -> None:
        self.notices.append(text)
