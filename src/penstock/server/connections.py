"""Connections: no more at once than there are descriptors for, and none that stands still for ever.

A process that has run out of file descriptors can neither accept connections nor read files. So those past the limit
are refused while there are some left, and those on which nothing comes, or from which nothing is taken, are closed.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import psutil  # type: ignore[import-untyped]
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from penstock.openai_api.errors import RequestError

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp

    from penstock.server.settings import Settings

BURST = 16
"""Connections that are accepted at once."""
SPARE_DESCRIPTORS = 4 * BURST + 32
"""For connections on their way in or out, which take some turns of the loop, and for files."""
BACKLOG = 1024
"""Connections that the system holds until they are accepted."""
RETRY_SECONDS = 1


class Config(uvicorn.Config):
    """Uvicorn's configuration with the limits of connections."""

    def __init__(self, app: ASGIApp, settings: Settings, **options: Any) -> None:
        super().__init__(app, http=Connection, backlog=BURST, **options)
        self.patience_seconds = settings.body_seconds
        self.most_connections = most_connections(settings)


class Connection(H11Protocol):
    """One connection. Its client has so many seconds to send a request's head, or to take what was sent to it."""

    config: Config

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._patience = config.patience_seconds
        self._waits_for_head: asyncio.TimerHandle | None = None
        self._waits_for_room: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Ending(transport, self.loop, self._patience))  # type: ignore[arg-type]
        if len(self.connections) > self.config.most_connections:
            problem = f"{self.config.most_connections} connections are open already."
            self._refuse(RequestError(problem, "Try again later.", status=503), f"Retry-After: {RETRY_SECONDS}\r\n")
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._waits_for_head, self._waits_for_room):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waits_for_room = self.loop.call_later(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._waits_for_room is not None:
            self._waits_for_room.cancel()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. A reply to its beginning may be under way, or finished."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(RequestError("What came is not HTTP/1.1.", "Send a well-formed request."))
        else:
            self.transport.close()

    def _await_head(self) -> None:
        """Start the clock where the next thing to come is a request, unless it runs already; stop it where not."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._waits_for_head is not None:
                self._waits_for_head.cancel()
                self._waits_for_head = None
        elif self._waits_for_head is None:
            self._waits_for_head = self.loop.call_later(self._patience, self.transport.close)

    def _refuse(self, error: RequestError, headers: str = "") -> None:
        """Answer with an error, whatever was asked for, and close the connection."""
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Ending:
    """A transport that, once it is closed, waits for its client to take what was sent for so long and no longer."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self._transport, self._loop, self._patience = transport, loop, patience

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._loop.call_later(self._patience, self._transport.abort)  # does nothing where all is over by then
        self._transport.close()


def most_connections(settings: Settings) -> int:
    """So many as have something to do, and as there are descriptors for."""
    if sys.platform == "win32":  # which has no such limit
        return settings.connections
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return settings.connections
    free: int = limit - psutil.Process().num_fds() - SPARE_DESCRIPTORS
    return max(1, min(settings.connections, free))
