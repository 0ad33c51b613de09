"""What bench/compare.py measured: one record a run, ratios between neighbours, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contestants import PENSTOCK


@dataclass(frozen=True)
class Result:
    """One run. Seconds a token are those of single passes, the first the prompt's; `note` says what went wrong."""

    contestant: str
    version: str = ""
    note: str = ""
    open_seconds: float | None = None
    seconds_per_token: list[float] = field(default_factory=list)
    memory_cap_bytes: int | None = None
    peak_bytes: int | None = None
    oom_kills: int = 0
    disk_bytes_per_second: float | None = None
    """Direct reads under the same cap, just before."""
    prepare_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    """Everything that the contestant printed."""

    @property
    def first_seconds(self) -> float | None:
        return self.seconds_per_token[0] if self.seconds_per_token else None

    @property
    def median_seconds(self) -> float | None:
        """Of the tokens after the first; None where there are none."""
        return statistics.median(self.seconds_per_token[1:]) if len(self.seconds_per_token) > 1 else None


def ratio(results: list[Result], index: int) -> float | None:
    """How many times as long a token of run `index` takes as one of the Penstock runs right before and after it."""
    own = results[index].median_seconds
    before = next((s for s in map(_penstock_seconds, results[:index][::-1]) if s), None)
    after = next((s for s in map(_penstock_seconds, results[index + 1 :]) if s), None)
    neighbours = [seconds for seconds in (before, after) if seconds]
    if own is None or not neighbours or results[index].contestant == PENSTOCK:
        return None
    return own / statistics.mean(neighbours)


def _penstock_seconds(result: Result) -> float | None:
    return result.median_seconds if result.contestant == PENSTOCK else None


def save(path: Path, results: list[Result], setting: dict[str, Any]) -> None:
    """Write everything so far, so that a crash in the middle of a write loses nothing either."""
    runs = [asdict(result) | {"ratio_to_penstock": ratio(results, i)} for i, result in enumerate(results)]
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps({**setting, "results": runs}, indent=1) + "\n")
    partial.replace(path)
