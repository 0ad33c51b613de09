"""What happens within a pass, told to whoever listens: a live display, a trace, a plot.

Times are seconds of time.perf_counter(). Reads are told by the reader's threads, all else by the thread that runs the
pass. Without listeners nothing is told and nothing is measured twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["read", "wait", "compute", "part", "draft", "pass"]


class Event(NamedTuple):
    """Something that took from `begin` to `end`, in the thread of the (native) id `thread`."""

    kind: Kind
    """"read": an extent came from the disk; "wait": the pass stood still for it; "compute": a piece of weights was
    applied to the rows; "part": the embedding, a layer or the head of a pass; "pass": the whole of it; "draft":
    guessing what it is going to check."""
    name: str
    """The tensor, for the first three; "embedding", "layer 7", "head"; for a pass, how many rows it has; for a
    draft, how many guesses came of it."""
    begin: float
    end: float
    nbytes: int
    thread: int


Listener = Callable[[Event], None]


class Events:
    """The listeners of one model; they may come and go between passes."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def tell(self, kind: Kind, name: str, begin: float, end: float, nbytes: int = 0) -> None:
        if self.listeners:
            event = Event(kind, name, begin, end, nbytes, threading.get_native_id())
            for listener in self.listeners:
                listener(event)
