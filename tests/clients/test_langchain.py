"""LangChain's package for OpenAI: structured answers by each of its methods, functions, streams."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from helpers.served import Served

ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI


class Review(BaseModel):
    """What somebody thinks of a film."""

    label: Literal["good", "bad"]
    stars: Literal[1, 2, 3, 4, 5]
    words: list[Literal["long", "funny", "sad"]] = Field(max_length=2)


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tell the weather in a city.

    Args:
        city: which one
    """
    return f"fine in {city}"


@pytest.fixture(scope="module")
def chat(served: Served) -> Any:
    return ChatOpenAI(
        base_url=served.url,
        api_key="none",
        model=served.model,
        temperature=0,
        max_tokens=100,
        max_retries=0,
        timeout=300,
    )


def test_an_answer_and_its_stream(chat: Any) -> None:
    whole = chat.invoke("Say hello.")
    assert "".join(chunk.content for chunk in chat.stream("Say hello.")) == whole.content != ""
    assert whole.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("strict", [None, True])
def test_json_of_a_schema(chat: Any, strict: bool | None) -> None:
    answer = chat.with_structured_output(Review, method="json_schema", strict=strict).invoke("I loved it.")
    assert isinstance(answer, Review)


def test_json_of_any_kind(chat: Any) -> None:
    held = chat.with_structured_output({"title": "answer", "type": "object"}, method="json_mode", include_raw=True)
    found = held.invoke('Answer with JSON like {"label": "good"}, which is short.')
    assert found["raw"].content.startswith("{")
    if found["raw"].response_metadata["finish_reason"] == "stop":
        assert isinstance(found["parsed"], dict)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("strict", [None, True])
def test_structured_by_a_call(chat: Any, strict: bool | None) -> None:
    answer = chat.with_structured_output(Review, method="function_calling", strict=strict).invoke("I loved it.")
    assert isinstance(answer, Review)


@pytest.mark.usefixtures("calls")
def test_functions_and_their_answers(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = chat.bind_tools([weather], tool_choice="required", strict=True, parallel_tool_calls=False)
    messages: list[Any] = [HumanMessage("What is the weather like in Rome?")]
    for _ in range(3):
        answer = bound.invoke(messages)
        [call] = answer.tool_calls
        assert call["name"] == "weather"
        messages += [answer, ToolMessage(weather(**call["args"]), tool_call_id=call["id"])]
    assert chat.bind_tools([weather], tool_choice="none").invoke(messages).content


@pytest.mark.usefixtures("calls")
def test_calls_while_they_stream(chat: Any) -> None:
    whole = None
    for chunk in chat.bind_tools([weather], tool_choice="weather").stream("Rome?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [call["name"] for call in whole.tool_calls] == ["weather"]
    assert whole.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
