"""Lines of a prompt or of messages, beside those of OpenAI's batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batches import CHAT, TEXT, ask, records, run_batch, write_requests
from penstock import LLM, SamplingParams
from penstock.batch.lines import id_of_line, parse_line
from penstock.batch.requests import LineError

MESSAGES = [{"role": "user", "content": "print it"}]


def parsed(line: dict[str, Any], has_template: bool = True) -> tuple[str, str, dict[str, Any]]:
    data = json.dumps(line).encode()
    request = parse_line(data, 7, has_template)
    assert id_of_line(data, 7) == request.custom_id
    return request.custom_id, request.url, request.body


def test_a_prompt_is_asked_as_run_asks_it() -> None:
    line = {"prompt": "print it", "seed": 3}
    assert parsed(line) == ("line-7", CHAT, {"seed": 3, "messages": MESSAGES})
    assert parsed(line, has_template=False) == ("line-7", TEXT, {"seed": 3, "prompt": "print it"})
    for has_template in (True, False):
        assert parsed(line | {"raw": True}, has_template) == ("line-7", TEXT, {"seed": 3, "prompt": "print it"})
        assert parsed({"prompt": [1, 2], "raw": True}, has_template)[2] == {"prompt": [1, 2]}
    assert parsed({"messages": MESSAGES, "top_p": 0.5}) == ("line-7", CHAT, {"messages": MESSAGES, "top_p": 0.5})


@pytest.mark.parametrize(
    ("given_id", "custom_id"),
    [({"id": "a"}, "a"), ({"id": 12}, "12"), ({"custom_id": "b"}, "b"), ({"id": None}, "line-7")],
)
def test_what_results_call_it(given_id: dict[str, Any], custom_id: str) -> None:
    assert parsed({"prompt": "x"} | given_id)[0] == custom_id


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x", "temprature": 0}, "'temprature' is no field of a request: leave it out."),
        ({"prompt": "x", "messages": MESSAGES}, '"messages" and "prompt" are both there: leave one of them.'),
        ({"messages": MESSAGES, "raw": True}, '"messages" and "raw" are both there: leave one of them.'),
        ({"prompt": "x", "raw": 1}, '"raw" is 1, neither true nor false.'),
        ({"prompt": ["x"]}, '"prompt" is [\'x\'], not a string; "raw": true allows what /v1/completions takes.'),
        ({"prompt": "x", "id": True}, '"id" is True, neither a non-empty string nor a whole number.'),
        ({"prompt": "x", "id": ""}, "\"id\" is '', neither a non-empty string nor a whole number."),
        ({"prompt": "x", "id": 1, "custom_id": "a"}, '"id" and "custom_id" are both there: leave one of them.'),
        ({"question": "x"}, 'Line 7 has neither "prompt" nor "messages", nor what a line of OpenAI\'s batches has.'),
    ],
)
def test_what_is_refused(line: dict[str, Any], message: str) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(json.dumps(line).encode(), 7, True)
    assert caught.value.message == message


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@given(st.dictionaries(st.sampled_from(["prompt", "messages", "raw", "id", "custom_id", "n", "more"]), VALUES))
def test_whatever_the_fields_are_it_is_a_request_or_an_error(line: dict[str, Any]) -> None:
    for has_template in (True, False):
        try:
            request = parse_line(json.dumps(line).encode(), 1, has_template)
        except LineError:
            continue
        assert request.custom_id == id_of_line(json.dumps(line).encode(), 1)
        assert request.url in (CHAT, TEXT)
        assert "more" not in request.body


def test_answers_are_those_of_run_and_of_longer_lines(tmp_path: Path) -> None:
    settings = {"max_tokens": 5, "temperature": 0}
    lines = [
        {"prompt": "print it"} | settings,
        {"id": "m", "messages": MESSAGES} | settings,
        {"id": 3, "prompt": "def add(a, b):", "raw": True} | settings,
        ask("long", max_tokens=5),
        {"id": "m", "prompt": "again"},
        {"prompt": "x", "temperature": 9},
    ]
    path, out = write_requests(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    summary = run_batch(path, out)
    assert (summary.answered, summary.failed) == (4, 2)
    first, second, third, fourth, fifth, sixth = records(out)
    with LLM.open("demo") as llm:
        answer = llm.chat(MESSAGES, SamplingParams(**settings)).text
    assert first["response"]["body"]["choices"][0]["message"]["content"] == answer
    assert second["response"]["body"]["choices"][0]["message"]["content"] == answer
    assert third["response"]["body"]["choices"] == fourth["response"]["body"]["choices"]
    assert [one["custom_id"] for one in (first, second, third, fourth)] == ["line-1", "m", "3", "long"]
    assert fifth["error"] == {"code": "duplicate_custom_id", "message": "Line 2 has the same custom_id."}
    assert sixth["error"]["message"] == "temperature=9: Input should be less than or equal to 2."
    assert run_batch(path, out).complete_before
