from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.openai_api.answers import DEFAULT_MAX_TOKENS, Answers, prepare, submit
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import StreamOptions, parse
from penstock.openai_api.responses import ChatCompletion, TextCompletion
from penstock.openai_api.streaming import Chunks
from penstock.openai_api.token_text import token_bytes, token_text
from penstock.system import machine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "print it"}]
IDENTITY = {"id": "x", "created": 1, "model": "demo"}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB", draft="none") as llm:
        yield llm


def run(llm: LLM, url: str, body: dict[str, Any], **options: Any) -> Answers:
    answers = submit(llm, parse(url, body), **options)
    while answers.runs:
        llm.step()
    answers.cancel()
    return answers


def response(llm: LLM, url: str, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    return run(llm, url, body, **options).response(**IDENTITY)


class TestWhole:
    def test_a_chat(self, llm: LLM) -> None:
        body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 6}
        got = ChatCompletion.model_validate(response(llm, CHAT, body))
        expected = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=6))
        assert got.choices[0].message.content == expected.text
        assert got.choices[0].finish_reason == expected.finish_reason == "length"
        assert got.usage.completion_tokens == len(expected.token_ids)
        assert got.usage.prompt_tokens == expected.stats.prompt_tokens

    def test_prompts_times_choices(self, llm: LLM) -> None:
        body = {"prompt": ["def add(", "class A"], "n": 2, "temperature": 1, "seed": 5, "max_tokens": 4}
        got = TextCompletion.model_validate(response(llm, TEXT, body))
        assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in got.choices]
        assert texts[0] != texts[1]
        for prompt, own in zip(body["prompt"], (texts[:2], texts[2:]), strict=True):
            alone = response(llm, TEXT, {**body, "prompt": prompt})
            assert [choice["text"] for choice in alone["choices"]] == own

    def test_a_seed_that_was_drawn_draws_the_same_again(self, llm: LLM) -> None:
        body = {"prompt": "def ", "temperature": 1.5, "max_tokens": 8}
        first = response(llm, TEXT, body)
        again = response(llm, TEXT, {**body, "seed": first["seed"]})
        assert again["choices"] == first["choices"]
        assert first["seed"] < 2**53

    def test_a_stop_string_ends_the_text(self, llm: LLM) -> None:
        got = response(llm, TEXT, {"prompt": "def add(a, b):", "temperature": 0, "stop": "Return", "max_tokens": 30})
        assert got["choices"][0]["finish_reason"] == "stop"
        assert "Return" not in got["choices"][0]["text"]

    def test_token_ids_are_prompts(self, llm: LLM) -> None:
        body = {"temperature": 0, "max_tokens": 5}
        ids = llm.encode("def add(a, b):")
        by_ids = response(llm, TEXT, {**body, "prompt": [ids]})
        assert by_ids["choices"] == response(llm, TEXT, {**body, "prompt": "def add(a, b):"})["choices"]

    def test_answers_resume(self, llm: LLM) -> None:
        body = {"prompt": "def ", "temperature": 1, "seed": 3, "n": 2, "max_tokens": 12, "logprobs": 0}
        whole = run(llm, TEXT, body)
        part = submit(llm, parse(TEXT, body))
        for _ in range(4):
            llm.step()
        drawn = part.token_ids
        part.cancel()
        resumed = run(llm, TEXT, body, drawn=drawn)
        assert resumed.token_ids == whole.token_ids
        texts = [[choice["text"] for choice in answers.response(**IDENTITY)["choices"]] for answers in (whole, resumed)]
        assert texts[0] == texts[1]


class TestLogprobs:
    def test_of_a_chat(self, llm: LLM) -> None:
        body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
        got = ChatCompletion.model_validate(response(llm, CHAT, body)).choices[0]
        assert got.logprobs is not None
        content = got.logprobs.content
        assert len(content) == 5
        assert b"".join(bytes(entry.bytes) for entry in content).decode() == got.message.content
        for entry in content:
            assert entry.logprob == entry.top_logprobs[0].logprob  # greedy
            assert len(entry.top_logprobs) == 3
            assert entry.token == token_text(bytes(entry.bytes))

    def test_of_a_text(self, llm: LLM) -> None:
        body = {"prompt": "def add(a, b):", "temperature": 2, "seed": 1, "max_tokens": 5, "logprobs": 2}
        got = TextCompletion.model_validate(response(llm, TEXT, body)).choices[0]
        told = got.logprobs
        assert told is not None
        assert "".join(told.tokens) == got.text
        for token, offset, logprob, top in zip(
            told.tokens, told.text_offset, told.token_logprobs, told.top_logprobs, strict=True
        ):
            assert got.text[offset:].startswith(token)
            assert top[token] == logprob

    def test_bytes_that_are_no_text(self, llm: LLM) -> None:
        tokenizer = llm.tokenizer
        assert tokenizer is not None
        text = "aé漢\U0001f600 b"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(token_bytes(tokenizer, token) for token in ids) == text.encode()
        assert token_text(b"\xe6\xbc") == r"bytes:\xe6\xbc"

    def test_tokens_without_a_tokenizer(self) -> None:
        assert token_bytes(None, 7) == b"token_id:7"


class TestRefused:
    def test_too_long_for_the_context(self, llm: LLM) -> None:
        with pytest.raises(RequestError, match="no room") as caught:
            submit(llm, parse(TEXT, {"prompt": [5] * (llm.context + 1)}))
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")

    def test_nothing_is_submitted_where_one_prompt_is_bad(self, llm: LLM) -> None:
        with pytest.raises(RequestError, match="vocabulary"):
            submit(llm, parse(TEXT, {"prompt": [[1], [9999]]}))
        assert not llm.busy

    def test_a_limit_that_memory_cannot_hold(self) -> None:
        room = machine.footprint().nbytes + (180 << 20)  # all positions of the context take 192 MiB
        with LLM.open("demo", memory=room, draft="none") as small:
            with pytest.raises(RequestError, match="do not fit"):
                prepare(small, parse(TEXT, {"prompt": "x", "max_tokens": 130000}))
            # without a limit of its own it gets what fits
            answers = submit(small, parse(TEXT, {"prompt": "x"}), default_max_tokens=130000)
            assert 1 <= answers.completions[0].sequence.max_tokens < 130000
            answers.cancel()

    def test_the_default_limit(self, llm: LLM) -> None:
        answers = submit(llm, parse(TEXT, {"prompt": "x"}))
        assert answers.completions[0].sequence.max_tokens == DEFAULT_MAX_TOKENS
        answers.cancel()


class TestChunks:
    def test_a_stream_adds_up_to_the_whole(self, llm: LLM) -> None:
        for url, body in (
            (CHAT, {"messages": MESSAGES, "n": 2, "logprobs": True, "top_logprobs": 1}),
            (TEXT, {"prompt": ["a", "b"], "logprobs": 1}),
        ):
            request = parse(url, {**body, "seed": 2, "max_tokens": 6})
            prepared = prepare(llm, request)
            answers = submit(llm, prepared)
            chunks = Chunks(prepared, llm.tokenizer, StreamOptions(include_usage=True), **IDENTITY)
            got = chunks.begin()
            while answers.runs:
                llm.step()
                for index, completion in enumerate(answers.completions):
                    while completion.pieces:
                        got += chunks.piece(index, completion.pieces.popleft())
            whole = answers.response(**IDENTITY)
            answers.cancel()
            [usage] = chunks.end(answers.usage)
            assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
            for choice in whole["choices"]:
                self.check(
                    choice, [chunk["choices"][0] for chunk in got if chunk["choices"][0]["index"] == choice["index"]]
                )

    @staticmethod
    def check(whole: dict[str, Any], chunks: list[dict[str, Any]]) -> None:
        if "message" in whole:
            assert chunks[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
            told = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
            assert told == whole["logprobs"]["content"]
        else:
            assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
            for name, values in whole["logprobs"].items():
                assert [v for chunk in chunks if chunk["logprobs"] for v in chunk["logprobs"][name]] == values
        assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == [whole["finish_reason"]]
        assert chunks[-1]["finish_reason"] == whole["finish_reason"]

    def test_usage_so_far(self, llm: LLM) -> None:
        prepared = prepare(llm, parse(TEXT, {"prompt": "def ", "max_tokens": 3, "temperature": 0}))
        options = StreamOptions(include_usage=True, continuous_usage_stats=True)
        chunks = Chunks(prepared, llm.tokenizer, options, **IDENTITY)
        answers = submit(llm, prepared)
        counts = []
        while answers.runs:
            llm.step()
            piece = answers.completions[0].pieces.popleft()
            counts += [chunk["usage"]["completion_tokens"] for chunk in chunks.piece(0, piece)]
        answers.cancel()
        assert counts == [1, 2, 3]
