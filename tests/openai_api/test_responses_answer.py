from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response

from penstock.openai_api.responses_answer import Events, whole
from penstock.openai_api.responses_request import parse_responses

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


def test_a_whole_answer() -> None:
    request, _ = parse_responses({"input": "1+1?", "tools": [TOOL]})
    message = {"content": None, **call('{"a": 1}', id="call_1")}
    answer = whole(
        request, IDENTITY, {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    )
    assert answer["status"] == "completed"
    assert [(item["type"], item["call_id"]) for item in answer["output"]] == [("function_call", "call_1")]
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 1
