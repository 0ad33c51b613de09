from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ChatTemplateError, ContextError, ReadError, UsageError
from penstock.grammars.grammar import ANY_OBJECT, Grammar
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import ChatCompletionRequest, CompletionRequest, check_model, parse
from penstock.openai_api.tools import for_template

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f"}}
MESSAGES = [{"role": "user", "content": "Hello"}]


def chat(**body: Any) -> ChatCompletionRequest:
    request = parse(CHAT, {"messages": MESSAGES, **body})
    assert isinstance(request, ChatCompletionRequest)
    return request


def text(**body: Any) -> CompletionRequest:
    request = parse(TEXT, {"prompt": "Hello", **body})
    assert isinstance(request, CompletionRequest)
    return request


class TestGood:
    def test_parameters_reach_the_sampler(self) -> None:
        params = chat(
            temperature=1, top_p=0.5, top_k=7, min_p=0.1, repetition_penalty=1.5, seed=3, max_tokens=9, stop="x",
            logprobs=True, top_logprobs=4,
        ).params()  # fmt: skip
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1, 0.5, 7, 0.1)
        assert (params.repetition_penalty, params.seed, params.max_tokens, params.stops) == (1.5, 3, 9, ("x",))
        assert params.logprobs == 4

    def test_what_is_left_out_is_left_open(self) -> None:
        params = chat().params()
        assert (params.temperature, params.seed, params.max_tokens, params.stops) == (None, None, None, ())
        assert params.logprobs is None

    def test_null_is_left_out(self) -> None:
        fields = ("temperature", "top_p", "seed", "max_tokens", "stop", "n", "logprobs", "stream", "tools", "user")
        assert chat(**dict.fromkeys(fields)).params() == chat().params()

    def test_a_default_seed_gives_way_to_one_in_the_request(self) -> None:
        assert chat().params(5).seed == 5
        assert chat(seed=0).params(5).seed == 0

    def test_whole_numbers_may_have_a_point(self) -> None:
        assert chat(max_tokens=3.0).params().max_tokens == 3

    def test_negative_seeds_are_seeds(self) -> None:
        assert chat(seed=-1).params().seed == 2**64 - 1

    def test_both_names_of_the_limit(self) -> None:
        assert chat(max_completion_tokens=3).params().max_tokens == 3
        assert chat(max_completion_tokens=3, max_tokens=3).params().max_tokens == 3

    def test_logprobs_of_chats_count_besides_the_drawn_token(self) -> None:
        assert chat(logprobs=True).params().logprobs == 0
        assert chat(logprobs=False).params().logprobs is None
        assert text(logprobs=0).params().logprobs == 0

    def test_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
        assert chat(messages=[{"role": "user", "content": parts}]).messages[0].plain()["content"] == "one two"

    def test_developers_are_the_system(self) -> None:
        message = {"role": "developer", "content": "Be brief.", "name": "boss"}
        plain = chat(messages=[message]).messages[0].plain()
        assert plain == {"role": "system", "content": "Be brief.", "name": "boss"}

    @pytest.mark.parametrize(
        ("prompt", "prompts"),
        [
            ("a", ["a"]),
            ("", [""]),
            (["a", "b"], ["a", "b"]),
            ([1, 2], [[1, 2]]),
            ([[1, 2], [3]], [[1, 2], [3]]),
        ],
    )
    def test_four_forms_of_prompts(self, prompt: Any, prompts: Any) -> None:
        assert text(prompt=prompt).prompts == prompts

    def test_fields_that_mean_nothing_here(self) -> None:
        named = chat(
            user="u", metadata={"a": "b"}, service_tier="auto", prompt_cache_key="k", safety_identifier="s",
            prompt_cache_retention="24h", prompt_cache_options={"ttl": "30m"},
        )  # fmt: skip
        assert named.params() == chat().params()

    @pytest.mark.parametrize(
        ("asked", "form"),
        [
            ({"response_format": {"type": "json_object"}}, Grammar("schema", ANY_OBJECT)),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},
                Grammar("schema", '{"type": "null"}'),
            ),
            ({"structured_outputs": {"json": {"type": "null"}}}, Grammar("schema", '{"type": "null"}')),
            ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
            ({"structured_outputs": {"choice": ["a", 'b"']}}, Grammar("grammar", 'start: "a" | "b\\""')),
            ({"structured_outputs": {"grammar": "start: A"}}, Grammar("grammar", "start: A")),
        ],
    )
    def test_forms_of_answers(self, asked: dict[str, Any], form: Grammar) -> None:
        for request in (chat(**asked), text(**asked)):
            assert request.params().form == form

    def test_penalties_and_biases(self) -> None:
        params = chat(presence_penalty=0.5, frequency_penalty=-2, logit_bias={"7": -100, "3": 1.5}).params()
        assert (params.presence_penalty, params.frequency_penalty) == (0.5, -2)
        assert params.biases == ((3, 1.5), (7, -100.0))

    def test_tools_and_what_they_told(self) -> None:
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}, "strict": True}}
        called = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        request = chat(
            messages=[
                *MESSAGES,
                {"role": "assistant", "content": None, "tool_calls": [called], "refusal": None, "annotations": []},
                {"role": "tool", "content": "2", "tool_call_id": "c"},
            ],
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "add"}},
            parallel_tool_calls=False,
        )
        assert isinstance(request, ChatCompletionRequest)
        arguments = called | {"function": {"name": "add", "arguments": {"a": 1}}}
        assert [message.plain() for message in request.messages[-2:]] == [
            {"role": "assistant", "content": "", "tool_calls": [arguments]},
            {"role": "tool", "content": "2", "tool_call_id": "c"},
        ]
        assert for_template(request.tools or []) == [
            {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        ]

    def test_unsupported_fields_may_have_values_that_change_nothing(self) -> None:
        chat(
            tools=[], functions=[], tool_choice="none", response_format={"type": "text"}, logit_bias={}, audio=None,
            presence_penalty=0, frequency_penalty=0.0, modalities=["text"], store=False,
            verbosity="medium", moderation=None, stream=True, stream_options={"include_obfuscation": False},
        )  # fmt: skip
        text(echo=False, suffix="", best_of=2, n=2)


class TestBad:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": "1"}, "temperature"),
            ({"temperature": True}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_p": 1.1}, "top_p"),
            ({"top_k": -1}, "top_k"),
            ({"min_p": 2}, "min_p"),
            ({"repetition_penalty": 0}, "repetition_penalty"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"max_completion_tokens": 0}, "max_completion_tokens"),
            ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
            ({"n": 0}, "n"),
            ({"n": 9}, "n"),
            ({"seed": 2**64}, "seed"),
            ({"seed": -(2**63) - 1}, "seed"),
            ({"stop": ""}, "stop"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"stop": ["a", 1]}, "stop"),
            ({"stream": "yes"}, "stream"),
            ({"stream_options": {}}, "stream_options"),
            ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
            ({"presence_penalty": 2.1}, "presence_penalty"),
            ({"frequency_penalty": "1"}, "frequency_penalty"),
            ({"logit_bias": {"1": 101}}, "logit_bias"),
            ({"logit_bias": {"a": 1}}, "logit_bias"),
            ({"logit_bias": [1]}, "logit_bias"),
            ({"no_such_field": [{}]}, "no_such_field"),
            ({"guided_json": {}}, "guided_json"),
            ({"grammar": "start: A"}, "grammar"),
            ({"response_format": {"type": "xml"}}, "response_format.type"),
            ({"response_format": {"type": "json_schema"}}, "response_format"),
            ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
            ({"structured_outputs": {}}, "structured_outputs"),
            ({"model": 1}, "model"),
        ],
    )
    def test_of_both(self, body: dict[str, Any], param: str) -> None:
        if "max_completion_tokens" not in body:
            self.check(TEXT, {"prompt": "x", **body}, param)
        self.check(CHAT, {"messages": MESSAGES, **body}, param)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "Hello"}, "messages"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [*MESSAGES, {"role": "robot", "content": "x"}]}, "messages[1].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
            ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"logprobs": 1}, "logprobs"),
            ({"tools": [{"type": "function"}]}, "tools[0].function"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"functions": [{}]}, "functions"),
            ({"tools": [TOOL, TOOL]}, "tools"),
            ({"tools": [TOOL | {"type": "retrieval"}]}, "tools[0].type"),
            ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
            ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
            ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
            ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
            ({"continue_final_message": True}, "continue_final_message"),
            ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
            ({"prompt_logprobs": 1}, "prompt_logprobs"),
            ({"modalities": ["text", "audio"]}, "modalities"),
            ({"audio": {}}, "audio"),
            ({"prediction": {}}, "prediction"),
            ({"verbosity": "low"}, "verbosity"),
            ({"moderation": {}}, "moderation"),
            ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
            ({"reasoning_effort": "high"}, "reasoning_effort"),
            ({"store": True}, "store"),
            ({"max_tokens": 0}, "max_tokens"),
        ],
    )
    def test_of_chats(self, body: dict[str, Any], param: str) -> None:
        self.check(CHAT, {"messages": MESSAGES, **body}, param)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"prompt": None}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [[]]}, "prompt"),
            ({"prompt": [1, "a"]}, "prompt"),
            ({"prompt": [[1], "a"]}, "prompt"),
            ({"prompt": [True]}, "prompt"),
            ({"prompt": ["a"] * 129}, "prompt"),
            ({"prompt": ["a"] * 17, "n": 8}, "n"),
            ({"logprobs": 6}, "logprobs"),
            ({"logprobs": True}, "logprobs"),
            ({"echo": True, "stream": True}, "echo"),
            ({"max_tokens": -1}, "max_tokens"),
            ({"suffix": "x", "echo": True}, "suffix"),
            ({"suffix": "x", "prompt": [[1]]}, "suffix"),
            ({"suffix": ["x"]}, "suffix"),
            ({"best_of": 2}, "best_of"),
        ],
    )
    def test_of_completions(self, body: dict[str, Any], param: str) -> None:
        self.check(TEXT, {"prompt": "x", **body}, param)

    @staticmethod
    def check(url: str, body: dict[str, Any], param: str) -> None:
        with pytest.raises(RequestError) as caught:
            parse(url, body)
        error = caught.value.body()["error"]
        assert (caught.value.status, error["param"], error["type"]) == (400, param, "invalid_request_error")
        assert param in error["message"]

    @pytest.mark.parametrize("body", [None, [], "x", 1])
    def test_a_body_is_an_object(self, body: Any) -> None:
        with pytest.raises(RequestError, match="not a JSON object"):
            parse(CHAT, body)

    def test_another_url(self) -> None:
        with pytest.raises(RequestError, match="not served here") as caught:
            parse("/v1/embeddings", {})
        assert caught.value.status == 404

    def test_another_model(self) -> None:
        check_model(chat(model="demo").model, "demo")
        check_model(chat().model, "demo")
        with pytest.raises(RequestError, match="'gpt' is not served here") as caught:
            check_model(chat(model="gpt").model, "demo")
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )

    @given(st.sampled_from([CHAT, TEXT]), st.data())
    def test_whatever_comes_is_a_request_or_an_error_of_one(self, url: str, data: st.DataObject) -> None:
        names = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields})
        body = data.draw(st.dictionaries(st.sampled_from(names), self.JSON, max_size=4))
        problem: RequestError | None = None
        try:
            parse(url, {"prompt": "x", "messages": MESSAGES, **body}).params()
        except RequestError as error:
            problem = error
        assert problem is None or (problem.status == 400 and json.dumps(problem.body()))


class TestErrors:
    def test_the_request_is_to_blame_or_the_machine(self) -> None:
        assert RequestError.of(UsageError("a", "b")).status == 400
        assert RequestError.of(ChatTemplateError("a")).status == 400
        assert RequestError.of(ContextError("a")).code == "context_length_exceeded"
        failed = RequestError.of(ReadError("The disk is gone.", "Look."))
        assert failed.body() == {
            "error": {"message": "The disk is gone. Look.", "type": "server_error", "param": None, "code": None}
        }
        assert failed.status == 500

    def test_one_of_a_request_stays_what_it_is(self) -> None:
        error = RequestError("x", status=404)
        assert RequestError.of(error) is error
