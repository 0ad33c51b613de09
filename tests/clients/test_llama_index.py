"""LlamaIndex, through its class for what is like OpenAI."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from helpers.served import Served

OpenAILike = pytest.importorskip("llama_index.llms.openai_like").OpenAILike

from llama_index.core.llms import ChatMessage  # noqa: E402
from llama_index.core.prompts import PromptTemplate  # noqa: E402
from llama_index.core.tools import FunctionTool  # noqa: E402


class Review(BaseModel):
    """What somebody thinks of a film."""

    label: Literal["good", "bad"]
    stars: Literal[1, 2, 3, 4, 5]


class Place(BaseModel):
    """Where to ask about."""

    city: Literal["Paris", "Rome"]


def made(served: Served, **options: Any) -> Any:
    return OpenAILike(
        api_base=served.url, api_key="none", model=served.model, is_chat_model=True, temperature=0, max_tokens=100,
        max_retries=0, timeout=300, context_window=2048, **options,
    )  # fmt: skip


def test_a_chat_and_its_stream(served: Served) -> None:
    llm = made(served)
    messages = [ChatMessage(role="user", content="Say hello.")]
    whole = llm.chat(messages).message.content
    assert "".join(piece.delta or "" for piece in llm.stream_chat(messages)) == whole != ""


def test_a_completion(served: Served) -> None:
    assert made(served).complete("Say hello.").text


def test_structured_predict(served: Served) -> None:
    llm = made(served, should_use_structured_outputs=True)
    assert isinstance(llm.structured_predict(Review, PromptTemplate("A review of {film}"), film="Metropolis"), Review)


@pytest.mark.usefixtures("calls")
def test_structured_predict_by_a_call(served: Served) -> None:
    llm = made(served, is_function_calling_model=True)
    found = llm.structured_predict(
        Review, PromptTemplate("A review of {film}"), llm_kwargs={"tool_choice": "required"}, film="Metropolis"
    )
    assert isinstance(found, Review)


@pytest.mark.usefixtures("calls")
def test_functions(served: Served) -> None:
    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return f"fine in {city}"

    llm = made(served, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(weather, fn_schema=Place)
    answer = llm.chat_with_tools([tool], user_msg="The weather in Rome?", tool_required=True)
    [call] = llm.get_tool_calls_from_response(answer)[:1]
    assert (call.tool_name, call.tool_kwargs["city"] in ("Paris", "Rome")) == ("weather", True)
