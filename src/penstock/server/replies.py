"""Answers on their way to a client, whole or as a stream, with signs of life while a pass runs.

A pass may take longer than clients and proxies wait for a silent connection. A stream says something every second, the
time in the queue included: a comment that clients skip. A whole answer that is not there after ten seconds begins, with
white space, which JSON may begin with. Either way the request is cancelled when its client goes away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from penstock.openai_api.embeddings import PreparedEmbeddings
from penstock.openai_api.streaming import Chunks
from penstock.server.errors import error_response
from penstock.server.job import Ended, Failed, Made, Pieces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

    from starlette.types import Receive, Scope, Send

    from penstock.completion import Piece
    from penstock.openai_api.errors import RequestError
    from penstock.openai_api.requests import StreamOptions
    from penstock.server.job import Job
    from penstock.server.metrics import Metrics
    from penstock.server.settings import Settings
    from penstock.server.worker import Worker

log = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Reply(Response):
    """What both kinds of answers have in common; `identity` is the answer's id, created and model."""

    def __init__(
        self, job: Job, worker: Worker, settings: Settings, metrics: Metrics, identity: dict[str, Any]
    ) -> None:
        super().__init__(headers=HEADERS, media_type=self.media_type)
        del self.headers["content-length"]
        self._job = job
        self._worker = worker
        self._settings = settings
        self._metrics = metrics
        self._identity = identity
        self._outcome = "cancelled"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._worker.cancel(self._job)
            for task in (answer, gone):
                task.cancel()
            results = await asyncio.gather(answer, gone, return_exceptions=True)
            self._metrics.count(self._outcome)
        if isinstance(results[0], CutError):
            log.warning("An answer was cut: %s", results[0])  # and since it is not completed, its connection
        elif isinstance(results[0], Exception) and not isinstance(results[0], (asyncio.TimeoutError, OSError)):
            raise results[0]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        """Raises TimeoutError where the client takes nothing any more."""
        message = {"type": "http.response.body", "body": data, "more_body": more}
        await asyncio.wait_for(send(message), self._settings.body_seconds)


class StreamReply(Reply):
    """Server-sent events: a chunk for every piece, comments in between, `[DONE]` in the end."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, worker: Worker, settings: Settings, metrics: Metrics, identity: dict[str, Any],
                 options: StreamOptions | None) -> None:  # fmt: skip
        super().__init__(job, worker, settings, metrics, identity)
        if isinstance(job.request, PreparedEmbeddings):
            raise TypeError("vectors are not streamed")
        self._chunks = Chunks(job.request, worker.shelf.known(job.model).tokenizer, options, **identity)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._start(send)
        await self._send(send, self._comment() + self._begin())
        while not self._job.cancelled:  # Python 3.11 may lose a cancellation of this task
            event = await self._job.next(self._settings.keep_alive_seconds)
            if isinstance(event, Pieces):
                await self._send(send, self._pieces(event.pieces))
            elif isinstance(event, Ended):
                self._outcome = "completed"
                await self._send(send, self._end(event.answers.usage), more=False)
                return
            elif isinstance(event, Failed):
                self._outcome = "failed"
                await self._send(send, self._failed(event.error), more=False)
                return
            else:
                await self._send(send, self._comment())

    def _begin(self) -> bytes:
        return sse_events(self._chunks.begin())

    def _pieces(self, pieces: list[tuple[int, Piece]]) -> bytes:
        return sse_events([chunk for piece in pieces for chunk in self._chunks.piece(*piece)])

    def _end(self, usage: dict[str, Any]) -> bytes:
        return sse_events(self._chunks.end(usage)) + b"data: [DONE]\n\n"

    def _failed(self, error: RequestError) -> bytes:
        return sse_events([error.body()])

    def _comment(self) -> bytes:
        """A sign of life, which tells those who read it how far things are."""
        return f": {json.dumps(self._worker.status(self._job))}\n\n".encode()


class WholeReply(Reply):
    """One JSON object."""

    media_type = "application/json"

    def __init__(self, job: Job, worker: Worker, settings: Settings, metrics: Metrics, identity: dict[str, Any],
                 executor: Executor) -> None:  # fmt: skip
        """`executor` makes the object, which may be a long one, part by part."""
        super().__init__(job, worker, settings, metrics, identity)
        self._executor = executor

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        sign_due = clock() + self._settings.patience_seconds
        begun = False
        while not self._job.cancelled:
            event = await self._job.next(self._settings.keep_alive_seconds)
            if isinstance(event, (Ended, Made)):
                await self._finish(event, begun, send)
                return
            if isinstance(event, Failed):
                self._outcome = "failed"
                if begun:
                    raise CutError(event.error.problem)
                await error_response(event.error)(scope, receive, send)
                return
            if clock() >= sign_due:
                if not begun:
                    await self._start(send)
                    begun = True
                await self._send(send, b" ")
                sign_due = clock() + self._settings.keep_alive_seconds

    async def _finish(self, event: Ended | Made, begun: bool, send: Send) -> None:
        loop = asyncio.get_running_loop()
        parts = await loop.run_in_executor(self._executor, self._parts, event)  # which decodes much where it is long
        while (part := await loop.run_in_executor(self._executor, next, parts, None)) is not None:
            if not begun:
                await self._start(send)
                begun = True
            await self._send(send, part.encode())
        self._outcome = "completed"
        await self._send(send, b"", more=False)

    def _parts(self, event: Ended | Made) -> Iterator[str]:
        return event.answers.response_parts(**self._identity)


class CutError(Exception):
    """An answer that has begun and cannot be finished: the connection is cut, so that no client takes it for whole."""


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sse_events(chunks: list[dict[str, Any]]) -> bytes:
    """Chunks that have a type are events of that name."""
    return b"".join(
        (f"event: {chunk['type']}\n".encode() if "type" in chunk else b"") + b"data: " + _json(chunk) + b"\n\n"
        for chunk in chunks
    )
