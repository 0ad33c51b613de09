from __future__ import annotations

import json
from array import array
from typing import Any

from openai.types.responses import Response

from penstock.completion import Piece, Stats
from penstock.openai_api.answers import Prepared
from penstock.openai_api.responses_answer import Events, whole
from penstock.openai_api.responses_request import parse_responses
from penstock.openai_api.streaming import Chunks
from penstock.openai_api.tool_formats import HERMES
from penstock.openai_api.tools import ToolUse
from penstock.sampling import SamplingParams

IDENTITY = {"id": "resp_1", "created": 1, "model": "m"}
TOOL = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}}


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **more, "function": {"name": "add", "arguments": arguments}}]}


def test_calls_become_messages_of_a_chat() -> None:
    items = [
        {"role": "user", "content": "1+1?"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I add."}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    choice = {"type": "function", "name": "add"}
    _, chat = parse_responses({"input": items, "tools": [TOOL], "tool_choice": choice})
    plain = [message.plain() for message in chat.messages]
    assert [message["role"] for message in plain] == ["user", "assistant", "tool"]
    assert plain[1]["content"] == "I add."
    assert plain[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}
    assert plain[2]["tool_call_id"] == "c1"
    assert chat.tools is not None
    assert chat.tools[0].function.strict


def test_events_of_text_and_a_call() -> None:
    request, _ = parse_responses({"input": "1+1?", "tools": [TOOL]})
    events = Events(request, IDENTITY)
    made = [*events.begin(), *events.delta({"content": "I add."}, None), *events.delta(call("", id="call_1"), None)]
    made += [*events.delta(call('{"a"'), None), *events.delta(call(": 1}"), "tool_calls"), *events.end(USAGE)]
    kinds = [event["type"].removeprefix("response.") for event in made]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert made[8]["item"]["arguments"] == ""
    got = Response.model_validate(made[-1]["response"], strict=False)
    assert got.output_text == "I add."
    assert [item.type for item in got.output] == ["message", "function_call"]
    assert json.loads(made[-1]["response"]["output"][1]["arguments"]) == {"a": 1}


def choices_of(*texts: str) -> list[dict[str, Any]]:
    """What a chat's stream tells where each of these came of one pass."""
    tools = ToolUse(HERMES, ("add",), frozenset(), None)
    prepared = Prepared(True, (array("I", [1]),), 1, SamplingParams(), 9, tools=tools)
    chunks = Chunks(prepared, None, None, id="x", created=1, model="m")
    reasons = [None] * (len(texts) - 1) + ["stop"]
    pieces = [Piece(text, [1], reason, Stats(1, 0)) for text, reason in zip(texts, reasons, strict=True)]
    return [chunk["choices"][0] for piece in pieces for chunk in chunks.piece(0, piece)]


def test_a_pass_that_ends_a_call_and_goes_on_with_text() -> None:
    """The call's arguments are whole before the message begins."""
    choices = choices_of('I add.<tool_call>\n{"name": "add", "arguments": {"a": ', "1}}\n</tool_call>\nDone.")
    told = [next(iter(choice["delta"])) for choice in choices]
    assert told == ["content", "tool_calls", "tool_calls", "content"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "tool_calls"]
    request, _ = parse_responses({"input": "1+1?", "tools": [TOOL]})
    events = Events(request, IDENTITY)
    made = [event for choice in choices for event in events.delta(choice["delta"], choice["finish_reason"])]
    [done] = [event for event in made if event["type"] == "response.function_call_arguments.done"]
    assert done["arguments"] == '{"a": 1}'
    assert [item["type"] for item in events.end(USAGE)[-1]["response"]["output"]] == [
        "message",
        "function_call",
        "message",
    ]


def test_several_calls_in_one_pass() -> None:
    written = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    [choice] = choices_of(written * 2)
    assert [(call["index"], call["function"]) for call in choice["delta"]["tool_calls"]] == [
        (index, {"name": "add", "arguments": "{}"}) for index in (0, 1)
    ]
    assert choices_of("", "")[0]["delta"] == {"content": ""}


def test_a_whole_answer() -> None:
    request, _ = parse_responses({"input": "1+1?", "tools": [TOOL]})
    message = {"content": None, **call('{"a": 1}', id="call_1")}
    answer = whole(
        request, IDENTITY, {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    )
    assert answer["status"] == "completed"
    assert [(item["type"], item["call_id"]) for item in answer["output"]] == [("function_call", "call_1")]
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 1
