"""Request bodies: as long as they may be, and no more of them in memory at once than there is room for."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from penstock.openai_api.errors import RequestError
from penstock.server.settings import BODIES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

DRAIN_SECONDS = 3.0
"""A body that is too long is taken and dropped for so long, since a client that still sends does not read the error."""


class Bodies:
    """Where bodies are while they arrive and until they have become token ids."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        """`most_bytes` of one body, which must arrive within `seconds`."""
        self._most = most_bytes
        self._seconds = seconds
        self._free = BODIES * most_bytes
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, for as long as the context lasts.

        Raises RequestError: 413 where it is too long, 408 where it comes too slowly, 429 where there is no room for it;
        and ClientDisconnect.
        """
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() else self._most
        if size > self._most:
            await self._drain(request)
            raise self._too_long()
        try:
            await asyncio.wait_for(self._take(size), self._seconds)
        except asyncio.TimeoutError:
            raise RequestError(
                "Other requests take all the room for bodies.", "Try again.", status=429, code="queue_full"
            ) from None
        try:
            yield await self._receive(request)
        finally:
            await self._give_back(size)

    async def _receive(self, request: Request) -> bytes:
        try:
            return await asyncio.wait_for(self._collect(request), self._seconds)
        except asyncio.TimeoutError:
            raise RequestError(
                f"The body did not arrive within {self._seconds:.0f} seconds.", "Send it faster.", status=408
            ) from None

    async def _collect(self, request: Request) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                body.clear()
                if more:
                    await self._drain(request)
                raise self._too_long()
        return bytes(body)

    async def _drain(self, request: Request) -> None:
        async def drain() -> None:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drain(), DRAIN_SECONDS)

    def _too_long(self) -> RequestError:
        return RequestError(
            f"The body is longer than {self._most} bytes.", "Shorten it, or raise --max-body.", status=413
        )

    async def _take(self, size: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size

    async def _give_back(self, size: int) -> None:
        async with self._changed:
            self._free += size
            self._changed.notify_all()
