"""Answers as they come: pieces of text become the chunk objects of a stream."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from penstock.openai_api.answers import cached_of, head, usage_of
from penstock.openai_api.json_parts import expanded
from penstock.openai_api.logprobs import chat_logprobs, text_logprobs
from penstock.openai_api.tool_calls import Argued, Called, Said

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.completion import Piece
    from penstock.openai_api.answers import Prepared
    from penstock.openai_api.requests import StreamOptions
    from penstock.openai_api.tool_calls import Event, ToolCalls
    from penstock.openai_api.tools import ToolUse
    from penstock.text.tokenizer import Tokenizer


class Chunks:
    """Makes the chunks of one request's stream: `begin`, then `piece` for what comes, then `end`."""

    def __init__(
        self,
        request: Prepared,
        tokenizer: Tokenizer | None,
        options: StreamOptions | None,
        *,
        id: str,
        created: int,
        model: str,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._usage = options is not None and bool(options.include_usage)
        self._always = self._usage and options is not None and bool(options.continuous_usage_stats)
        self._drawn = 0
        self._head = head("chat.completion.chunk" if request.chat else "text_completion", id, created, model)
        self._offsets = [0] * (len(request.prompts) * request.choices)
        self._calls = [] if request.tools is None else [request.tools.calls() for _ in self._offsets]
        self._cached = [0] * len(self._offsets)

    def begin(self) -> list[dict[str, Any]]:
        """Who speaks, for each answer of a chat."""
        if not self._request.chat:
            return []
        return [
            self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)
            for index in range(len(self._offsets))
        ]

    def piece(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """What came of one of the answers: a chunk, or several where it goes from calls to text or back."""
        self._drawn += len(piece.token_ids)
        self._cached[index] = piece.stats.cached_tokens
        wanted = self._request.params.logprobs is not None and bool(piece.logprobs)
        if not self._request.chat:
            found = text_logprobs(self._tokenizer, piece.logprobs, self._offsets[index]) if wanted else None
            self._offsets[index] += len(piece.text)
            return [self._chunk(index, {"text": piece.text}, expanded(found), piece.finish_reason)]
        logprobs = expanded(chat_logprobs(self._tokenizer, piece.logprobs)) if wanted else None
        reason = piece.finish_reason
        deltas: list[dict[str, Any]] = [{"content": piece.text} if piece.text or reason is None else {}]
        if self._request.tools is not None:
            deltas, reason = self._tool_deltas(self._request.tools, self._calls[index], piece)
        chunks = [self._chunk(index, {"delta": delta}, None, None) for delta in deltas[:-1]]
        return [*chunks, self._chunk(index, {"delta": deltas[-1]}, logprobs, reason)]

    def _tool_deltas(self, tools: ToolUse, answer: ToolCalls, piece: Piece) -> tuple[list[dict[str, Any]], str | None]:
        """What a piece adds to text and calls, in the order in which the model wrote it; at least one delta."""
        events = answer.push(piece.text)
        reason = piece.finish_reason
        if reason is not None:
            events += answer.finish()
            reason = "tool_calls" if answer.calls and reason == "stop" else reason
        deltas: list[dict[str, Any]] = [
            {"content": "".join(event.text for event in some if isinstance(event, Said))}
            if said
            else {"tool_calls": _calls(tools, some)}
            for said, some in groupby(events, lambda event: isinstance(event, Said))
        ]
        return deltas or [{} if reason else {"content": ""}], reason

    def end(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """What it took, where that was asked for."""
        return [{**self._head, "choices": [], "usage": usage}] if self._usage else []

    def _chunk(
        self, index: int, body: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = usage_of(self._request, self._drawn, cached_of(self._request, self._cached)) if self._always else None
        return {**self._head, "choices": [choice]} | ({"usage": usage} if self._usage else {})


def _calls(tools: ToolUse, events: Iterable[Event]) -> list[dict[str, Any]]:
    """What is new of calls, one object each."""
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, Called):
            function = {"name": event.name, "arguments": ""}
            calls[event.call] = {"index": event.call, "id": tools.new_id(), "type": "function", "function": function}
        elif isinstance(event, Argued):
            call = calls.setdefault(event.call, {"index": event.call, "function": {"arguments": ""}})
            call["function"]["arguments"] += event.text
    return list(calls.values())
