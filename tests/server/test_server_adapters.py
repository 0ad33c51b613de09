"""A server with adapters: a request names one as its model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from helpers.adapters import LoraCase
from helpers.http_siege import write_model
from helpers.serving import Serving, serving
from penstock import LLM

PROMPT = "def add(a, b):"
NAMES = ("demo", "one", "two")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    model = tmp_path_factory.mktemp("models") / "model"
    write_model(model)
    paths = [LoraCase().write(model.parent / name, model, seed) for seed, name in enumerate(NAMES[1:])]
    with LLM.open(model, adapters=paths) as llm, serving(llm) as running:
        yield running


def complete(server: Serving, model: str) -> str:
    done = server.client().completions.create(
        model=model, prompt=PROMPT, max_tokens=12, temperature=0, extra_body={"ignore_eos": True}
    )
    assert done.model == model
    return done.choices[0].text


def test_by_name(server: Serving) -> None:
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda name: complete(server, name), NAMES * 3))
    assert found[:3] == found[3:6] == found[6:]
    assert len(set(found)) == 3
    unnamed = server.post(
        "/v1/completions", json={"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    ).json()
    assert unnamed["model"] == "demo"
    assert unnamed["choices"][0]["text"] == found[0]


def test_streams(server: Serving) -> None:
    stream = server.client().completions.create(
        model="two", prompt=PROMPT, max_tokens=12, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {"two"}
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == complete(server, "two")


def test_the_list(server: Serving) -> None:
    assert [model.id for model in server.client().models.list()] == list(NAMES)
    assert server.client().models.retrieve("one").id == "one"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("three")


def test_other_names(server: Serving) -> None:
    with pytest.raises(openai.NotFoundError, match="Ask for 'demo', 'one', 'two', or leave `model` out"):
        complete(server, "three")
