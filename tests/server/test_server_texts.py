"""Paths about texts: vectors and token ids."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from helpers.serving import MODEL, Serving, serving
from penstock import LLM


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB") as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running


@pytest.fixture(scope="module")
def spare() -> Iterator[LLM]:
    """The same model, which no server has."""
    with LLM.open("demo") as llm:
        yield llm


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return server.client()


TEXTS = ["def add(a, b):", "class A:\n    pass\n"]


def test_embeddings(client: openai.OpenAI, spare: LLM) -> None:
    expected = spare.embed(TEXTS)
    found = client.embeddings.create(model=MODEL, input=TEXTS)  # base64, as the client asks
    np.testing.assert_array_equal(np.float32([each.embedding for each in found.data]), expected)
    assert [each.index for each in found.data] == [0, 1]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(spare.encode(text)) for text in TEXTS)
    plain = client.embeddings.create(model=MODEL, input=spare.encode(TEXTS[0]), encoding_format="float")
    np.testing.assert_array_equal(np.float32(plain.data[0].embedding), expected[0])
    last = client.embeddings.create(model=MODEL, input=TEXTS[0], extra_body={"pooling": "last"})
    np.testing.assert_array_equal(np.float32(last.data[0].embedding), spare.embed(TEXTS[:1], pooling="last")[0])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a", "what": 1}, "what"),
        ({"input": [10**6]}, "input"),
    ],
)
def test_embeddings_that_cannot_be(client: openai.OpenAI, body: dict[str, object], param: str) -> None:
    response = httpx.post(f"{client.base_url}embeddings", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.embeddings.create(model="gpt-4", input="a")
    root = str(client.base_url).removesuffix("/v1/")
    for path, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [5]})):
        assert httpx.post(f"{root}/{path}", json={"model": MODEL, **body}).status_code == 200
        assert httpx.post(f"{root}/{path}", json={"model": "gpt-4", **body}).status_code == 404


def test_tokens_and_back(client: openai.OpenAI, llm: LLM) -> None:
    root = str(client.base_url).removesuffix("/v1/")
    found = httpx.post(f"{root}/tokenize", json={"prompt": TEXTS[1]}).json()
    assert found == {"tokens": llm.encode(TEXTS[1]), "count": len(found["tokens"]), "max_model_len": llm.context}
    assert llm.tokenizer is not None
    back = httpx.post(f"{root}/detokenize", json={"tokens": found["tokens"]}).json()
    assert back == {"prompt": llm.tokenizer.decode(found["tokens"], skip_special_tokens=False)}
    for path, body in (
        ("tokenize", {}),
        ("tokenize", {"prompt": 5}),
        ("detokenize", {"tokens": [-1]}),
        ("detokenize", {}),
    ):
        assert httpx.post(f"{root}/{path}", json=body).status_code == 400


def test_base64_is_of_float32() -> None:
    assert np.frombuffer(base64.b64decode("AACAPw=="), "<f4").tolist() == [1.0]
