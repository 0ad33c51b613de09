"""Fields that this server does not have are refused wherever they come, and not passed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.serving import Serving, serving
from penstock import LLM

MESSAGES = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
    "/v1/embeddings": {"input": "x"},
}
OF_OTHERS: dict[str, Any] = {
    "guided_json": {"type": "object"},
    "guided_regex": "a",
    "grammar": "root ::= x",
    "chat_template_kwargs": {"enable_thinking": False},
    "chat_template": "{{ messages }}",
    "continue_final_message": True,
    "add_generation_prompt": False,
    "prompt_logprobs": 1,
    "stop_token_ids": [1],
    "return_tokens_as_token_ids": True,
    "colour": None,
}
"""Those of other servers, and one that nobody has; null is no way around."""


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with LLM.open("demo", memory="1GiB") as llm, serving(llm, max_tokens=2) as running:
        yield running


@pytest.mark.parametrize("field", OF_OTHERS)
@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields(server: Serving, path: str, field: str) -> None:
    response = server.post(path, json=BODIES[path] | {field: OF_OTHERS[field]})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, field, "unknown_parameter")
    assert error["message"] == f"{field} is not known here: leave it out."


@pytest.mark.parametrize("path", BODIES)
def test_without_them_all_is_well(server: Serving, path: str) -> None:
    assert server.post(path, json=BODIES[path]).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "store", True),
        ("/v1/chat/completions", "functions", [{"name": "f"}]),
        ("/v1/chat/completions", "reasoning_effort", "high"),
        ("/v1/responses", "background", True),
        ("/v1/responses", "top_logprobs", 2),
        ("/v1/responses", "truncation", "auto"),
    ],
)
def test_fields_of_openai_that_are_not_supported(server: Serving, path: str, field: str, value: Any) -> None:
    response = server.post(path, json=BODIES[path] | {field: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, field, "unsupported_parameter")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_fields_that_only_chats_have(server: Serving, path: str) -> None:
    for field, value in {"tools": [], "tool_choice": "none", "parallel_tool_calls": False}.items():
        assert server.post(path, json=BODIES[path] | {field: value}).status_code == 400
