"""Functions that answers call, from a request to its answer: chats and responses, whole and as streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from helpers.serving import MODEL, serving
from helpers.tools_model import with_tools
from penstock import LLM

CITIES, UNITS = ["Paris", "Rome", "Oslo"], ["celsius", "fahrenheit"]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"enum": CITIES}, "unit": {"enum": UNITS}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "maxProperties": 0}}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
ASKED: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How warm is it?"}],
    "tools": [WEATHER, TIME],
    "temperature": 0,
    "max_tokens": 120,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = with_tools(tmp_path_factory.mktemp("tools") / "model")
    with LLM.open(path, memory="1GiB") as llm, serving(llm) as running:
        yield running.client()


def check_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert given.keys() == {"city", "unit"}
    assert given["city"] in CITIES
    assert given["unit"] in UNITS


def test_a_named_function(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    check_weather(call.function.arguments)


def test_a_schema_in_parts(client: openai.OpenAI) -> None:
    """As pydantic has a model with others in it."""
    parts = {"City": {"enum": CITIES}, "Units": {"enum": UNITS}}
    named = {"city": {"$ref": "#/$defs/City"}, "unit": {"$ref": "#/$defs/Units"}}
    function = {"name": "weather", "parameters": {**SCHEMA, "properties": named, "$defs": parts}}
    asked = {**ASKED, "tools": [TIME, {"type": "function", "function": function}]}
    [call] = client.chat.completions.create(**asked, tool_choice=NAMED).choices[0].message.tool_calls or []
    assert call.type == "function"
    check_weather(call.function.arguments)


def test_a_stream_tells_the_same_in_deltas(client: openai.OpenAI) -> None:
    asked = {**ASKED, "temperature": 1, "seed": 3, "tool_choice": NAMED}
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    chunks: list[Any] = list(client.chat.completions.create(**asked, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert (deltas[0].type, deltas[0].function.name) == ("function", "weather")
    assert [delta.id is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert all(delta.function.name is None for delta in deltas[1:])
    assert whole
    assert whole[0].type == "function"
    assert "".join(delta.function.arguments for delta in deltas) == whole[0].function.arguments
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_one_call_where_no_more_are_wanted(client: openai.OpenAI) -> None:
    message = (
        client.chat.completions.create(**ASKED, tool_choice="required", parallel_tool_calls=False).choices[0].message
    )
    assert message.tool_calls
    assert len(message.tool_calls) == 1


def test_a_call_and_its_answer_go_back_in(client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0].message
    assert message.tool_calls
    messages: Any = [
        *ASKED["messages"], message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "5 degrees"}
    ]  # fmt: skip
    last = client.chat.completions.create(**{**ASKED, "messages": messages, "max_tokens": 4}, tool_choice="none")
    assert last.choices[0].message.content
    assert last.choices[0].message.tool_calls is None


def test_a_call_that_is_cut(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**{**ASKED, "max_tokens": 12}, tool_choice=NAMED).choices[0]
    assert choice.finish_reason == "length"


FLAT: Any = {
    "model": MODEL,
    "input": "How warm is it?",
    "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}],
    "tool_choice": {"type": "function", "name": "weather"},
    "temperature": 0,
    "max_output_tokens": 120,
}


def test_responses(client: openai.OpenAI) -> None:
    got = client.responses.create(**FLAT)
    [item] = got.output
    assert got.status == "completed"
    assert item.type == "function_call"
    assert item.name == "weather"
    check_weather(item.arguments)
    events: list[Any] = list(client.responses.create(**FLAT, stream=True))
    told = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert told == done.arguments == item.arguments
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].arguments == item.arguments
    answered: Any = [
        {"role": "user", "content": FLAT["input"]},
        item.model_dump(),
        {"type": "function_call_output", "call_id": item.call_id, "output": "5 degrees"},
    ]
    last = client.responses.create(**{**FLAT, "input": answered, "tool_choice": "none", "max_output_tokens": 4})
    assert last.output_text
