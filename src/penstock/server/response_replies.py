"""Replies of POST /v1/responses: those of chats, written in the shape of OpenAI's Responses API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.openai_api.json_parts import json_parts
from penstock.openai_api.responses_answer import Events, whole
from penstock.server.job import Made
from penstock.server.replies import StreamReply, WholeReply, sse_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.completion import Piece
    from penstock.openai_api.errors import RequestError
    from penstock.openai_api.responses_request import ResponsesRequest
    from penstock.server.job import Ended


class WholeResponse(WholeReply):
    """One response object."""

    def __init__(self, asked: ResponsesRequest, *args: Any) -> None:
        super().__init__(*args)
        self._asked = asked

    def _parts(self, event: Ended | Made) -> Iterator[str]:
        if isinstance(event, Made):
            raise TypeError("vectors are no response")
        return json_parts(whole(self._asked, self._identity, event.answers.response(**self._identity)))


class StreamResponse(StreamReply):
    """Its events."""

    def __init__(self, asked: ResponsesRequest, *args: Any) -> None:
        super().__init__(*args)
        self._made = Events(asked, self._identity)

    def _begin(self) -> bytes:
        return sse_events(self._made.begin())

    def _pieces(self, pieces: list[tuple[int, Piece]]) -> bytes:
        choices = [chunk["choices"][0] for piece in pieces for chunk in self._chunks.piece(*piece)]
        return b"".join(sse_events(self._made.delta(choice["delta"], choice["finish_reason"])) for choice in choices)

    def _end(self, usage: dict[str, Any]) -> bytes:
        return sse_events(self._made.end(usage))

    def _failed(self, error: RequestError) -> bytes:
        return sse_events(self._made.failed(error))
