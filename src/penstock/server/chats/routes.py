"""What the chat page asks for, under /chats. Not for other programs: it changes with the page."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import checked
from penstock.server.chats.conversation import Ask, Chat, ChatChange, ChatSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

    from penstock.server.chats.answer import RunningAnswer
    from penstock.server.chats.service import Chats

Body = TypeVar("Body", bound=BaseModel)
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def add_chats(app: FastAPI) -> None:
    """The paths of conversations; `app.state.chats` answers."""

    @app.get("/chats", include_in_schema=False)
    async def chats(request: Request) -> Response:
        """All of them, or 304 where the page has this list."""
        data = json.dumps({"chats": await _chats(request).list()}).encode()
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"ETag": tag, **HEADERS, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="application/json", headers=headers)

    @app.post("/chats", include_in_schema=False)
    async def create(request: Request) -> Response:
        settings = await _body(request, ChatSettings)
        return _reply(await _chats(request).create(Chat(settings=settings)), 201)

    @app.get("/chats/{id}", include_in_schema=False)
    async def chat(request: Request, id: str) -> Response:
        return _reply(await _chats(request).get(id))

    @app.patch("/chats/{id}", include_in_schema=False)
    async def change(request: Request, id: str) -> Response:
        """Another title, other settings."""
        version, wanted = _version(request), await _body(request, ChatChange)

        def edit(chat: Chat) -> None:
            chat.title = wanted.title or chat.title
            chat.settings = wanted.settings or chat.settings

        return _reply(await _chats(request).change(id, version, edit))

    @app.delete("/chats/{id}", include_in_schema=False)
    async def remove(request: Request, id: str) -> Response:
        await _chats(request).remove(id)
        return Response(status_code=204)

    @app.post("/chats/{id}/restore", include_in_schema=False)
    async def restore(request: Request, id: str) -> Response:
        """Have a deleted one back."""
        await _chats(request).restore(id)
        return Response(status_code=204)

    _add_answers(app)


def _add_answers(app: FastAPI) -> None:
    @app.post("/chats/{id}/answer", include_in_schema=False)
    async def ask(request: Request, id: str) -> Response:
        """Begin an answer, which goes on whether anybody listens or not."""
        version, wanted = _version(request), await _body(request, Ask)
        return _reply(await _chats(request).ask(id, version, wanted), 202)

    @app.get("/chats/{id}/answer", include_in_schema=False)
    async def follow(request: Request, id: str) -> Response:
        """The running answer as server-sent events: what there is of it first, so one may come back at any time."""
        frames = _events(_chats(request).answer(id), request.app.state.gateway.settings.keep_alive_seconds)
        return StreamingResponse(frames, media_type="text/event-stream", headers={**HEADERS, "X-Accel-Buffering": "no"})

    @app.delete("/chats/{id}/answer", include_in_schema=False)
    async def stop(request: Request, id: str) -> Response:
        await _chats(request).stop(id)
        return Response(status_code=204)


async def _events(answer: RunningAnswer, seconds: float) -> AsyncIterator[bytes]:
    async for frame in answer.frames(seconds):
        yield b"data: " + json.dumps(frame).encode() + b"\n\n"
    yield b"event: end\ndata: {}\n\n"


def _chats(request: Request) -> Chats:
    return request.app.state.chats  # type: ignore[no-any-return]


async def _body(request: Request, shape: type[Body]) -> Body:
    return checked(shape, await request.app.state.gateway.read_json(request))


def _version(request: Request) -> int:
    """Of the conversation that the page shows, from If-Match."""
    tag = request.headers.get("if-match", "").strip().strip('"')
    if not (tag.isascii() and tag.isdigit() and len(tag) < 16):
        raise RequestError("If-Match names no version of the conversation.", "Send the one that you saw.", status=428)
    return int(tag)


def _reply(chat: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(chat, status, {**HEADERS, "ETag": f'"{chat["version"]}"'})
