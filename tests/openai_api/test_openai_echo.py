"""Prompts that their answers begin with, and the probabilities of their tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import DEMO
from penstock import LLM
from penstock.openai_api.answers import submit
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import parse
from penstock.openai_api.responses import TextCompletion
from penstock.openai_api.token_text import token_bytes, token_text

URL = "/v1/completions"
PROMPT = "def add(a, b):\n    return a"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB", draft="none") as llm:
        yield llm


def response(llm: LLM, **body: Any) -> TextCompletion:
    answers = submit(llm, parse(URL, {"temperature": 0} | body))
    try:
        while answers.runs:
            llm.step()
        return TextCompletion.model_validate(answers.response(id="x", created=1, model="demo"))
    finally:
        answers.cancel()


@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_prompt_is_scored_and_nothing_drawn(llm: LLM, as_tokens: bool) -> None:
    tokens = llm.encode(PROMPT)
    got = response(llm, prompt=tokens if as_tokens else PROMPT, echo=True, logprobs=2, max_tokens=0)
    [choice] = got.choices
    [score] = llm.score([tokens], top=2)
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, *score.logprobs.tolist()]
    assert "".join(choice.logprobs.tokens[1:]) == PROMPT, "behind the token that begins every text"
    assert choice.logprobs.top_logprobs[0] is None
    for row, told in enumerate(choice.logprobs.top_logprobs[1:]):
        assert told is not None
        likely = zip(score.top_tokens[row].tolist(), score.top_logprobs[row].tolist(), strict=True)
        expected = {token_text(token_bytes(llm.tokenizer, token)): logprob for token, logprob in likely}
        own = token_text(token_bytes(llm.tokenizer, tokens[row + 1]))
        assert told == expected | {own: score.logprobs[row]}
    assert choice.logprobs.text_offset[:2] == [0, 0]
    for token, offset in zip(choice.logprobs.tokens[1:], choice.logprobs.text_offset[1:], strict=True):
        assert PROMPT[offset:].startswith(token)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(tokens), 0)


def test_what_is_drawn_follows(llm: LLM) -> None:
    plain = response(llm, prompt=PROMPT, logprobs=1, max_tokens=5).choices[0]
    whole = response(llm, prompt=PROMPT, logprobs=1, max_tokens=5, echo=True).choices[0]
    alone = response(llm, prompt=PROMPT, logprobs=1, max_tokens=0, echo=True).choices[0]
    assert plain.logprobs and whole.logprobs and alone.logprobs  # noqa: PT018
    assert whole.text == PROMPT + plain.text
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert getattr(whole.logprobs, name) == getattr(alone.logprobs, name) + getattr(plain.logprobs, name)
    assert whole.logprobs.text_offset[-1] == len(PROMPT) + plain.logprobs.text_offset[-1]


def test_what_is_scored_is_computed(llm: LLM) -> None:
    """The answer takes over what the scores had computed, and nothing was there before."""
    prompt = [5 + index % 900 for index in range(150)]
    for _ in range(2):
        got = response(llm, prompt=prompt, echo=True, logprobs=1, max_tokens=2)
        assert got.usage.prompt_tokens_details.cached_tokens == 0
    assert response(llm, prompt=prompt, echo=True, max_tokens=2).usage.prompt_tokens_details.cached_tokens == 128


def test_several_prompts_and_choices_share_a_pass(llm: LLM) -> None:
    prompts = [PROMPT, "import os\n"]
    answers = submit(llm, parse(URL, {"prompt": prompts, "echo": True, "logprobs": 0, "max_tokens": 1, "n": 2}))
    llm.step()
    assert not answers.runs
    got = TextCompletion.model_validate(answers.response(id="x", created=1, model="demo"))
    answers.cancel()
    for index, choice in enumerate(got.choices):
        assert choice.text.startswith(prompts[index // 2])
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None


def test_without_probabilities_nothing_is_computed(llm: LLM) -> None:
    answers = submit(llm, parse(URL, {"prompt": PROMPT, "echo": True, "max_tokens": 0}))
    assert not answers.runs
    assert answers.response(id="x", created=1, model="demo")["choices"][0]["text"] == PROMPT
    answers.cancel()


def test_a_prompt_of_one_token(llm: LLM) -> None:
    [choice] = response(llm, prompt=[40], echo=True, logprobs=1, max_tokens=0).choices
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == choice.logprobs.top_logprobs == [None]


def test_no_tokens_and_no_echo(llm: LLM) -> None:
    [choice] = response(llm, prompt=PROMPT, max_tokens=0).choices
    assert (choice.text, choice.finish_reason) == ("", "length")


def test_cancelled_it_leaves_nothing_behind(llm: LLM) -> None:
    answers = submit(llm, parse(URL, {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 0}))
    assert llm.busy
    answers.cancel()
    assert not llm.busy


def test_not_in_streams() -> None:
    with pytest.raises(RequestError, match="echo is not supported in streams"):
        parse(URL, {"prompt": "x", "echo": True, "stream": True})


def test_chats_draw_one_token_at_least() -> None:
    with pytest.raises(RequestError, match="max_tokens"):
        parse("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0})


def test_a_space_that_the_tokenizer_strips_off_the_beginning_of_texts(tmp_path: Path) -> None:
    """As Llama 2's does. Between a prompt and what follows, it stays; at the beginning of a chat's answer it goes."""
    shutil.copytree(DEMO, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], strip]}
    path.write_text(json.dumps(content))
    with LLM.open(tmp_path / "model", memory="1GiB", draft="none") as llm:
        space = llm.text_side().token_id("Ġ=")
        asked: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "logit_bias": {str(space): 100}}
        for echo in (False, True):
            got = response(llm, **asked, logprobs=1, echo=echo)
            before = ["a", "a", "b", "b"] if echo else [""] * 4
            assert [choice.text for choice in got.choices] == [f"{prompt} = =" for prompt in before]
            for choice in got.choices:
                assert choice.logprobs is not None
                assert [choice.text[offset:] for offset in choice.logprobs.text_offset[-2:]] == [" = =", " ="]
        del asked["prompt"], asked["n"]
        messages = [{"role": "user", "content": "a"}]
        for url, body, text in (
            (URL, {"prompt": "a"}, " = ="),
            ("/v1/chat/completions", {"messages": messages}, "= ="),
        ):
            answers = submit(llm, parse(url, asked | body), drawn=[[space]])  # a token that came before it was cut
            while answers.runs:
                llm.step()
            assert answers.completions[0].output().text == text
            answers.cancel()
