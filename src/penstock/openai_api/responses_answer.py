"""What POST /v1/responses answers: a chat's answer in the shape of OpenAI's Responses API, whole or as events."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.openai_api.errors import RequestError
    from penstock.openai_api.responses_request import ResponsesRequest

Object = dict[str, Any]


def response_object(
    request: ResponsesRequest, identity: Object, output: list[Object], reason: str | None = None,
    usage: Object | None = None,
) -> Object:  # fmt: skip
    """`reason`: why the answer ended, as a chat has it; None while it goes on. `usage`: as a chat has it."""
    done = {None: "in_progress", "length": "incomplete"}.get(reason, "completed")
    form = request.text and request.text.format
    return {
        "id": identity["id"],
        "object": "response",
        "created_at": identity["created"],
        "model": identity["model"],
        "status": done,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if reason == "length" else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "output": output,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": _choice(request),
        "tools": [
            {"description": None, "parameters": None, "strict": None, **tool.model_dump(exclude_none=True)}
            for tool in request.tools or []
        ],
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None if usage is None else _usage(usage),
        "user": request.user,
    }


def _choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump()


def _usage(chat: Object) -> Object:
    cached = chat.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": chat["total_tokens"],
    }


def whole(request: ResponsesRequest, identity: Object, chat: Object) -> Object:
    """The object of a chat completion's."""
    events = Events(request, identity)
    choice = chat["choices"][0]
    message = choice["message"]
    events.delta({"content": message["content"] or "", "tool_calls": [
        {"index": index, **call} for index, call in enumerate(message.get("tool_calls", []))
    ]}, choice["finish_reason"])  # fmt: skip
    return events.end(chat["usage"])[-1]["response"]  # type: ignore[no-any-return]


class Events:
    """The events of one stream, made of the deltas of a chat's: `begin`, `delta`s, then `end` or `failed`."""

    def __init__(self, request: ResponsesRequest, identity: Object) -> None:
        self._request = request
        self._identity = identity
        self._number = 0
        self._items: list[Object] = []
        self._open = False
        """Whether the last item goes on."""
        self._reason: str | None = None

    def begin(self) -> list[Object]:
        """That it began."""
        return [self._event(f"response.{kind}", response=self._object()) for kind in ("created", "in_progress")]

    def delta(self, delta: Object, reason: str | None) -> list[Object]:
        """What a chunk of a chat adds; `reason`: why it ends."""
        events: list[Object] = []
        if delta.get("content"):
            events += self._say(delta["content"])
        for call in delta.get("tool_calls", []):
            function = call["function"]
            if "id" in call:
                events += self._add({"type": "function_call", "id": _new("fc"), "call_id": call["id"],
                                     "name": function["name"], "arguments": ""})  # fmt: skip
            if function["arguments"]:
                self._items[-1]["arguments"] += function["arguments"]
                events.append(self._of_item("response.function_call_arguments.delta", delta=function["arguments"]))
        self._reason = reason or self._reason
        return events

    def end(self, usage: Object) -> list[Object]:
        """That it ended. `usage`: as a chat has it."""
        events = [] if self._items else self._add_message()
        events += self._close("incomplete" if self._reason == "length" else "completed")
        whole = response_object(self._request, self._identity, self._items, self._reason, usage)
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def failed(self, error: RequestError) -> list[Object]:
        """That it cannot go on."""
        told = {"code": "server_error", "message": error.body()["error"]["message"]}
        return [self._event("response.failed", response=self._object() | {"status": "failed", "error": told})]

    def _say(self, text: str) -> list[Object]:
        events: list[Object] = []
        if not (self._open and self._items[-1]["type"] == "message"):
            events += self._add_message()
        self._items[-1]["content"][0]["text"] += text
        return [*events, self._of_part("response.output_text.delta", delta=text, logprobs=[])]

    def _add_message(self) -> list[Object]:
        events = self._add({"type": "message", "id": _new("msg"), "role": "assistant", "content": []})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._items[-1]["content"].append(part)
        return [*events, self._of_part("response.content_part.added", part=dict(part))]

    def _add(self, item: Object) -> list[Object]:
        events = self._close("completed")
        self._items.append({**item, "status": "in_progress"})
        self._open = True
        # Copies: events that were not yet written must not change with the item.
        return [*events, self._of_item("response.output_item.added", item={**self._items[-1]} | _empty(item))]

    def _close(self, status: str) -> list[Object]:
        """End the last item, if it goes on."""
        if not self._open:
            return []
        self._open = False
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            events = [
                self._of_part("response.output_text.done", text=part["text"], logprobs=[]),
                self._of_part("response.content_part.done", part=dict(part)),
            ]
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._of_item("response.function_call_arguments.done", **told)]
        return [*events, self._of_item("response.output_item.done", item=dict(item))]

    def _object(self) -> Object:
        return response_object(self._request, self._identity, list(self._items))

    def _of_part(self, type: str, **more: Any) -> Object:
        return self._of_item(type, content_index=0, **more)

    def _of_item(self, type: str, **more: Any) -> Object:
        place = {"output_index": len(self._items) - 1}
        return self._event(type, **place, **({} if "item" in more else {"item_id": self._items[-1]["id"]}), **more)

    def _event(self, type: str, **more: Any) -> Object:
        self._number += 1
        return {"type": type, "sequence_number": self._number - 1, **more}


def _empty(item: Object) -> Object:
    return {"content": []} if item["type"] == "message" else {}


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
