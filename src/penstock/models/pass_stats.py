"""Where the time of a pass went, part by part."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class PartStats:
    """One part of a pass: seconds of the reads that it used, seconds that it waited for them, and the rest."""

    name: str
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    compute_seconds: float
    experts: int = 0
    """How many its rows needed,"""
    experts_read: int = 0
    """and how many of them were not in memory."""
    network_seconds: float = 0.0
    """What the way to another machine and back took."""
    node: str = ""
    """That machine; empty for this one."""

    def plus(self, other: PartStats) -> PartStats:
        """The same part of another pass besides."""
        counted = [field.name for field in fields(self) if field.name not in ("name", "node")]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in counted})


@dataclass(frozen=True, slots=True)
class PassStats:
    """One pass: how many rows it served, and its parts in order (embedding, layers, head)."""

    rows: int
    parts: tuple[PartStats, ...]
    seconds: float
    """From its beginning to its end, which the parts are most of, guessing and drawing included."""
    stage_seconds: float
    """Of them, those from the embedding to the head."""
    draft_seconds: float = 0.0
    """And those of guessing."""
    guesses: int = 0
    """How many of the rows are."""

    @property
    def bytes_read(self) -> int:
        return sum(part.bytes_read for part in self.parts)

    def totals(self) -> PassTotals:
        """The sums over all parts."""
        return PassTotals(
            rows=self.rows,
            seconds=self.seconds,
            draft_seconds=self.draft_seconds,
            guesses=self.guesses,
            logits=self.parts[-1].name == "head",
            bytes_read=self.bytes_read,
            read_seconds=sum(part.read_seconds for part in self.parts),
            wait_seconds=sum(part.wait_seconds for part in self.parts),
            compute_seconds=sum(part.compute_seconds for part in self.parts),
            experts=sum(part.experts for part in self.parts),
            experts_read=sum(part.experts_read for part in self.parts),
            network_seconds=sum(part.network_seconds for part in self.parts),
        )


@dataclass(frozen=True, slots=True)
class PassTotals:
    """What remains of a pass's costs in a long record; `logits`: whether it computed any."""

    rows: int
    seconds: float
    draft_seconds: float
    guesses: int
    logits: bool
    bytes_read: int
    read_seconds: float
    wait_seconds: float
    compute_seconds: float
    experts: int = 0
    experts_read: int = 0
    network_seconds: float = 0.0
