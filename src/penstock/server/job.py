"""One request on its way through the engine, between the thread of the engine and the loop that talks to clients."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.completion import Piece
    from penstock.openai_api.answers import Answers, Prepared
    from penstock.openai_api.embeddings import Embedded, PreparedEmbeddings
    from penstock.openai_api.errors import RequestError


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a pass brought: pieces with the numbers of the answers that they belong to."""

    pieces: list[tuple[int, Piece]]


@dataclass(frozen=True, slots=True)
class Ended:
    """All answers are whole; nobody changes them any more."""

    answers: Answers


@dataclass(frozen=True, slots=True)
class Made:
    """What was asked for that no completion makes."""

    answers: Embedded


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer."""

    error: RequestError


Event = Pieces | Ended | Made | Failed


class Job:
    """A request that was accepted. To be made in the loop that takes its events."""

    def __init__(self, request: Prepared | PreparedEmbeddings, model: str, drawn: Sequence[int] = ()) -> None:
        """`model`: which of the shelf's it is for; `drawn`: tokens of its only answer that an earlier run drew."""
        self.request = request
        self.model = model
        self.drawn = drawn
        self.cancelled = False
        """Nobody wants it any more. Any thread may set it, and none takes it back."""
        self.answers: Answers | None = None
        """Once it was submitted; for the engine's thread alone."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Hand an event over, from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float) -> Event | None:
        """The next event, or None where none comes within so many seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except asyncio.TimeoutError:
            return None
