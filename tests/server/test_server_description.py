"""The server keeps to its own description, whatever is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from helpers.serving import Serving, serving
from helpers.thorough import examples
from penstock import LLM
from penstock.openai_api.responses import ChatCompletion, ErrorBody, TextCompletion
from penstock.openai_api.responses_shape import ResponseObject


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with LLM.open("demo", memory="1GiB") as llm, serving(llm, max_tokens=2) as running:
        yield running


@pytest.fixture(scope="module")
def described(server: Serving) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


OPERATIONS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model_id}", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
)
SETTINGS = settings(
    max_examples=examples(25),
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
# What a description cannot say, such as that the model must be the one that is served, is refused as well.
load_all_checks()
UNCHECKED = CHECKS.get_by_names(["positive_data_acceptance"])


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_conforms(described: Any, path: str, method: str, mode: GenerationMode) -> None:
    """Documented statuses, types of content, bodies; what is malformed is refused."""

    @SETTINGS
    @given(described[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # long answers show no more than short ones
            for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                value = case.body.get(limit)
                if type(value) in (int, float) and value > 2:
                    case.body[limit] = 2
        case.call_and_validate(excluded_checks=UNCHECKED)

    try:
        check()
    except Unsatisfiable:
        assert (mode, method) == (GenerationMode.NEGATIVE, "GET")  # there is nothing to get wrong


def test_answers_are_as_described(server: Serving) -> None:
    body = {"max_tokens": 3, "logprobs": 2}
    TextCompletion.model_validate(server.post("/v1/completions", json={"prompt": "x", **body}).json())
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "logprobs": True, "top_logprobs": 1}
    ChatCompletion.model_validate(server.post("/v1/chat/completions", json=chat).json())
    ResponseObject.model_validate(server.post("/v1/responses", json={"input": "x", "max_output_tokens": 3}).json())
    ErrorBody.model_validate(server.post("/v1/chat/completions", json={}).json())


def test_requests_are_described(server: Serving) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    body = described["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = described["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert {"prompt", "temperature", "min_p", "stop"} <= set(fields)
    assert described["paths"].keys() == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id}", "/health", "/metrics",
        "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize",
    }  # fmt: skip
