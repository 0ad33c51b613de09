"""POST /v1/responses, as the `openai` package asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from helpers.serving import MODEL, Serving, serving
from penstock import LLM
from penstock.models.pass_stats import PassStats
from penstock.openai_api.responses_shape import ResponseObject

GREEDY: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 8}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with LLM.open("demo", memory="1GiB") as llm, serving(llm) as running:
        yield running.client()


def test_it_answers_as_a_chat_does(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "print it"}]
    chat = client.chat.completions.create(model=MODEL, temperature=0, max_tokens=8, messages=messages)
    got = client.responses.create(input="print it", instructions="Be brief.", **GREEDY)
    assert got.output_text == chat.choices[0].message.content
    assert got.status == "incomplete"
    assert got.incomplete_details is not None
    assert got.incomplete_details.reason == "max_output_tokens"
    assert got.usage is not None
    assert chat.usage is not None
    assert (got.usage.input_tokens, got.usage.output_tokens) == (chat.usage.prompt_tokens, 8)
    assert got.id.startswith("resp_")


def test_an_answer_goes_back_in(client: openai.OpenAI) -> None:
    first = client.responses.create(input="print it", **GREEDY)
    items: Any = [{"role": "user", "content": "print it"}, *[item.model_dump() for item in first.output]]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "more"}]})
    assert client.responses.create(input=items, **GREEDY).output_text


def test_a_stream(client: openai.OpenAI) -> None:
    whole = client.responses.create(input="print it", **GREEDY)
    events: list[Any] = list(client.responses.create(input="print it", stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"
    ]  # fmt: skip
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text
    assert events[2].item.content == []
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage


def test_structured_output(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        good: bool

    got = client.responses.parse(input="Is it good?", text_format=Answer, model=MODEL, temperature=0)
    assert isinstance(got.output_parsed, Answer)
    assert got.status == "completed"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id is not supported: leave it out."),
        ({"input": "x", "store": True}, "store is not supported: leave it out."),
        ({"input": "x", "extra": 1}, "extra is not known here: leave it out."),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0] is a function_call without name."),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content has parts other than"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].name is missing."),
    ],
)
def test_what_is_refused(client: openai.OpenAI, body: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body=body, cast_to=object)
    assert message in caught.value.message


def test_an_engine_that_fails_amid_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told by then stays told; the last event says that it failed, and nothing of why inside."""
    with LLM.open("demo", memory="1GiB", draft="none") as llm, serving(llm) as running:
        real, passes = llm.step, 0

        def step() -> PassStats:
            nonlocal passes
            passes += 1
            if passes == 3:
                raise ZeroDivisionError("a secret of the server's")
            return real()

        monkeypatch.setattr(llm, "step", step)
        asked: Any = {"input": "print it", "stream": True, **GREEDY}
        events: list[Any] = list(running.client().responses.create(**asked))
        kinds = [event.type for event in events]
        assert kinds.count("response.output_text.delta") == 2
        assert kinds[-1] == "response.failed"
        assert "response.completed" not in kinds
        assert [event.sequence_number for event in events] == list(range(len(events)))
        failed = events[-1].response
        assert failed.status == "failed"
        assert failed.error.code == "server_error"
        assert failed.error.message == "The server failed; its log says why."
        again: list[Any] = list(running.client().responses.create(**asked))
        assert again[-1].type == "response.incomplete"
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert again[-1].response.output_text.startswith(told)


def test_an_engine_that_fails_before_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM.open("demo", memory="1GiB", draft="none") as llm, serving(llm) as running:
        monkeypatch.setattr(llm, "step", failing)
        with pytest.raises(openai.InternalServerError) as caught:
            running.client().responses.create(input="print it", **GREEDY)
        assert caught.value.body["message"] == "The server failed; its log says why."  # type: ignore[index]


def test_objects_in_events_are_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM.open("demo", memory="1GiB") as llm, serving(llm) as running:
        told = objects(running)
        monkeypatch.setattr(llm, "step", failing)
        told += objects(running)
    assert [each.status for each in told] == ["in_progress", "in_progress", "incomplete"] + ["in_progress"] * 2 + [
        "failed"
    ]


def objects(running: Serving) -> list[ResponseObject]:
    """Responses that the events of a stream have in them."""
    text = running.post("/v1/responses", json={"input": "print it", "stream": True, "max_output_tokens": 2}).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    return [ResponseObject.model_validate(event["response"]) for event in events if "response" in event]


def failing() -> PassStats:
    raise ZeroDivisionError("a secret of the server's")
