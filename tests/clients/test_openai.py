"""OpenAI's own package: chats, streams, functions, parsed answers, completions."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from helpers.served import Served

QUESTION: Any = [{"role": "user", "content": "What is the weather like in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome", "Oslo"]},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


class Place(BaseModel):
    """What an answer is parsed into."""

    name: str = Field(max_length=20)
    kind: Literal["city", "river", "mountain"]
    visited: bool
    nearby: list[Literal["sea", "wood", "hill"]] = Field(max_length=2)


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=300)


def test_a_chat_and_its_stream(client: OpenAI, served: Served) -> None:
    asked: Any = {"model": served.model, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    told = ""
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        told += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert whole.choices[0].message.content == told != ""
    assert whole.usage is not None
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_the_stream_helper(client: OpenAI, served: Served) -> None:
    with client.chat.completions.stream(model=served.model, messages=QUESTION, temperature=0, max_tokens=24) as stream:
        told = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.current_completion_snapshot.choices[0].message.content == told != ""


def test_parse(client: OpenAI, served: Served) -> None:
    messages: Any = [{"role": "user", "content": "Name a place as JSON."}]
    answer = client.chat.completions.parse(
        model=served.model, messages=messages, response_format=Place, temperature=0, max_tokens=120
    )
    assert isinstance(answer.choices[0].message.parsed, Place)
    assert answer.choices[0].finish_reason == "stop"


def test_parse_while_it_streams(client: OpenAI, served: Served) -> None:
    messages: Any = [{"role": "user", "content": "Name a river as JSON."}]
    with client.chat.completions.stream(
        model=served.model, messages=messages, response_format=Place, temperature=0.7, seed=1, max_tokens=120
    ) as stream:
        events = [event.type for event in stream]
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Place)
    assert "content.done" in events


@pytest.mark.usefixtures("calls")
def test_three_calls_that_are_answered(client: OpenAI, served: Served) -> None:
    """As agents do: the answer to each call goes back, and the next one is asked for."""
    messages = [*QUESTION]
    for turn in range(3):
        answer = client.chat.completions.create(
            model=served.model, messages=messages, tools=[WEATHER], tool_choice="required",
            parallel_tool_calls=False, temperature=0, max_tokens=100,
        ).choices[0]  # fmt: skip
        assert answer.finish_reason == "tool_calls"
        assert answer.message.tool_calls is not None
        [call] = answer.message.tool_calls
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather"
        assert arguments["city"] in ("Paris", "Rome", "Oslo")
        messages.append(answer.message)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{turn} degrees"})
    last = client.chat.completions.create(
        model=served.model, messages=messages, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=24
    ).choices[0]
    assert last.message.content
    assert not last.message.tool_calls


@pytest.mark.usefixtures("calls")
def test_calls_while_they_stream(client: OpenAI, served: Served) -> None:
    asked: Any = {"model": served.model, "messages": QUESTION, "tools": [WEATHER, TIME], "temperature": 0}
    named: Any = {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "max_tokens": 100}
    whole = client.chat.completions.create(**asked, **named).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked, **named) as stream:
        deltas = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        told = stream.get_final_completion().choices[0].message.tool_calls
    assert whole
    assert told
    assert whole[0].type == told[0].type == "function"
    assert (told[0].function.name, told[0].function.arguments) == ("weather", whole[0].function.arguments)
    assert len(deltas) > 1


@pytest.mark.usefixtures("calls")
def test_a_function_of_a_model_of_pydantic(client: OpenAI, served: Served) -> None:
    tool = openai.pydantic_function_tool(Place, name="place")
    answer = client.chat.completions.parse(
        model=served.model, messages=QUESTION, tools=[tool], tool_choice="required", temperature=0, max_tokens=150,
        parallel_tool_calls=False,
    )  # fmt: skip
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Place)


def test_completions_and_their_probabilities(client: OpenAI, served: Served) -> None:
    answer = client.completions.create(
        model=served.model, prompt="def add(a, b):", temperature=0, max_tokens=8, logprobs=3
    ).choices[0]
    told = answer.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.top_logprobs is not None
    assert told.token_logprobs is not None
    assert "".join(told.tokens) == answer.text
    assert len(told.top_logprobs) == len(told.token_logprobs) == len(told.tokens) == 8
    assert all(len(top) >= 3 and max(top.values()) <= 0 for top in told.top_logprobs)
    assert told.token_logprobs[0] == max(told.top_logprobs[0].values())


def test_errors_are_the_clients_own(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="not known here"):
        client.chat.completions.create(model=served.model, messages=QUESTION, extra_body={"colour": "red"})
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="another", messages=QUESTION)
