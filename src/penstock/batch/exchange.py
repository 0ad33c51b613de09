"""What goes between a desk and a bench: plain data, which another process takes too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.batch.opening import Labels
    from penstock.batch.progress import Unfinished
    from penstock.batch.records import Names
    from penstock.batch.requests import Line, Request
    from penstock.batch.state import Drawn, Result
    from penstock.logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Terms:
    """What all lines of a batch have in common, besides the model."""

    names: Names
    labels: Labels
    max_tokens: int
    """Of requests that name no limit."""
    at_once: int
    """Answers that take part in passes of one bench, where that makes more than one request."""


@dataclass(frozen=True, slots=True)
class Before:
    """What earlier passes drew for one completion."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A line that is to be answered."""

    line: Line
    request: Request
    drawn: tuple[Before, ...] = ()
    """For each of its completions; none where it has not begun."""
    last_resort: bool = True
    """Whether no other bench has more memory, so that what does not fit is refused, and not handed back."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a bench between two passes."""

    unfinished: tuple[Unfinished, ...]
    """The requests that go on."""
    has_room: bool
    """Whether it may take up more lines."""
    handed_back: tuple[int, ...]
    """Lines that its memory has no room for, though another bench's may have, since it last said so."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What became of assignments."""

    taken: int
    """So many of them, from the first, were taken up; there was no room for the others."""
    standing: Standing


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass brought, or lines that were refused without one."""

    drawn: tuple[Drawn, ...]
    finished: tuple[Result, ...]
    tokens: int
    """That it drew, those of finished requests too."""
    seconds: float | None
    """That the pass took; None where there was nothing to compute."""
    standing: Standing
