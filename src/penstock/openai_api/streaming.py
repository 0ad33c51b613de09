"""Answers as they come: pieces of text become the chunk objects of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.openai_api.answers import cached_of, head, usage_of
from penstock.openai_api.json_parts import expanded
from penstock.openai_api.logprobs import chat_logprobs, text_logprobs

if TYPE_CHECKING:
    from penstock.completion import Piece
    from penstock.openai_api.answers import Prepared
    from penstock.openai_api.requests import StreamOptions
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
        self._cached = [0] * len(self._offsets)

    def begin(self) -> list[dict[str, Any]]:
        """Who speaks, for each answer of a chat."""
        if not self._request.chat:
            return []
        return [
            self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)
            for index in range(len(self._offsets))
        ]

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """What came of one of the answers."""
        self._drawn += len(piece.token_ids)
        self._cached[index] = piece.stats.cached_tokens
        wanted = self._request.params.logprobs is not None and bool(piece.logprobs)
        if self._request.chat:
            logprobs = expanded(chat_logprobs(self._tokenizer, piece.logprobs)) if wanted else None
            delta = {"content": piece.text} if piece.text or piece.finish_reason is None else {}
            return self._chunk(index, {"delta": delta}, logprobs, piece.finish_reason)
        found = text_logprobs(self._tokenizer, piece.logprobs, self._offsets[index]) if wanted else None
        logprobs = expanded(found)
        self._offsets[index] += len(piece.text)
        return self._chunk(index, {"text": piece.text}, logprobs, piece.finish_reason)

    def end(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """What it took, where that was asked for."""
        return [{**self._head, "choices": [], "usage": usage}] if self._usage else []

    def _chunk(
        self, index: int, body: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **body, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = usage_of(self._request, self._drawn, cached_of(self._request, self._cached)) if self._always else None
        return {**self._head, "choices": [choice]} | ({"usage": usage} if self._usage else {})
