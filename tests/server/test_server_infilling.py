"""POST /v1/completions with a suffix: what belongs between two texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.infilling import with_tokens
from helpers.serving import Serving, serving
from penstock import LLM, SamplingParams
from penstock.errors import TokenizerError

COMPLETIONS = "/v1/completions"
PREFIX, MIDDLE, SUFFIX, PAD = range(4092, 4096)
BEFORE, AFTER = "def add(a, b):\n    ", "\n\n\nprint(add(1, 2))\n"
BODY: Any = {"prompt": BEFORE, "suffix": AFTER, "temperature": 0, "max_tokens": 8}
ENDS_AT_ONCE = {str(PAD): 100}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM.open(with_tokens(tmp_path_factory.mktemp("fim")), memory="1GiB", context=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running


@pytest.fixture(scope="module")
def spare(llm: LLM) -> Iterator[LLM]:
    """The same model, which no server has."""
    with LLM.open(llm.path) as spare:
        yield spare


def choices(server: Serving, **more: Any) -> list[dict[str, Any]]:
    response = server.post(COMPLETIONS, json=BODY | more)
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


def test_it_is_what_python_fills_in(server: Serving, spare: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    expected = spare.fill_in(BEFORE, AFTER, params)
    assert [choice["text"] for choice in choices(server)] == [expected.text]
    before, after = (spare.text_side().encode(text, add_special_tokens=False) for text in (BEFORE, AFTER))
    ids = [0, PREFIX, *before, SUFFIX, *after, MIDDLE]
    assert spare.generate([ids], params)[0].token_ids == expected.token_ids
    assert "".join(piece.text for piece in spare.fill_in_stream(BEFORE, AFTER, params)) == expected.text


def test_the_end_of_the_middle_ends_the_answer(server: Serving, spare: LLM) -> None:
    [choice] = choices(server, logit_bias=ENDS_AT_ONCE)
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    [plain] = choices(server, logit_bias=ENDS_AT_ONCE, suffix=None)
    assert plain["finish_reason"] == "length"  # elsewhere it is a token as all others
    [on] = choices(server, logit_bias=ENDS_AT_ONCE, ignore_eos=True)
    assert on["finish_reason"] == "length"
    ended = spare.fill_in(BEFORE, AFTER, SamplingParams(temperature=0, max_tokens=8, logit_bias={PAD: 100}))
    assert (ended.token_ids, ended.finish_reason) == ([], "stop")


def test_several_prompts_and_a_stream(server: Serving) -> None:
    [first, second] = choices(server, prompt=[BEFORE, "class A:\n"])
    assert first["text"] == choices(server)[0]["text"]
    assert second["text"] == choices(server, prompt="class A:\n")[0]["text"]
    streamed = server.post(COMPLETIONS, json=BODY | {"stream": True}).text
    assert streamed.rstrip().endswith("[DONE]")


def test_nothing_in_the_texts_is_a_special_token(server: Serving, llm: LLM) -> None:
    text = "<|fim_middle|><|eot_id|>"
    ids = llm.infilling_prompt(text, text)
    assert [token for token in ids if token in {0, PREFIX, SUFFIX, MIDDLE, PAD, 4}] == [0, PREFIX, SUFFIX, MIDDLE]
    usage = server.post(COMPLETIONS, json=BODY | {"prompt": text, "suffix": text}).json()["usage"]
    assert usage["prompt_tokens"] == len(ids)


def test_an_empty_suffix_is_none(server: Serving) -> None:
    assert choices(server, suffix="") == choices(server, suffix=None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"echo": True}, "suffix is not supported together with echo: leave one of them out."),
        ({"prompt": [1, 2]}, "suffix is for prompts of text, and not of token ids."),
        ({"suffix": 5}, "suffix=5: Input should be a valid string."),
    ],
)
def test_what_is_refused(server: Serving, more: Any, message: str) -> None:
    response = server.post(COMPLETIONS, json=BODY | more)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["message"]) == (400, "suffix", message)


def test_a_model_that_cannot(spare: LLM) -> None:
    with LLM.open("demo", memory="1GiB") as llm:
        with pytest.raises(TokenizerError, match="cannot fill in a middle"):
            llm.fill_in(BEFORE, AFTER)
        with serving(llm) as server:
            response = server.post(COMPLETIONS, json=BODY)
            assert server.post(COMPLETIONS, json=BODY | {"suffix": ""}).status_code == 200
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "suffix")
    assert error["message"].startswith("This model cannot fill in a middle: its tokenizer has no tokens for that")


@pytest.mark.parametrize(("text", "param"), [("<|eot_id|>" * 1100, "suffix"), ("x y " * 1100, "prompt")])
def test_texts_that_are_too_long(server: Serving, text: str, param: str) -> None:
    response = server.post(COMPLETIONS, json=BODY | {"suffix": text})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "context_length_exceeded")
