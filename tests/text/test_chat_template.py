from __future__ import annotations

import enum
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ChatTemplateError
from penstock.text.chat_template import ChatTemplate

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "hello"}]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
PLAIN += "{{ '<answer>' if add_generation_prompt }}"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def template(name: str) -> ChatTemplate:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, TOKENS, now=lambda: datetime(2031, 2, 3))


def rendered(source: str, messages: Any = HELLO, **options: Any) -> str:
    return ChatTemplate(source, TOKENS).render(messages, **options)


def fails(source: str, messages: Any = HELLO, **options: Any) -> ChatTemplateError:
    with pytest.raises(ChatTemplateError) as caught:
        rendered(source, messages, **options)
    assert "\n" not in caught.value.problem + caught.value.remedy
    assert caught.value.remedy
    return caught.value


class TestKnownForms:
    """What comes of whole templates; tests/live compares them with `transformers`."""

    def test_chatml(self) -> None:
        assert template("chatml").render(HELLO) == (
            "<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_headers(self) -> None:
        messages = [{"role": "system", "content": " Be brief. "}, *HELLO]
        assert template("headers").render(messages) == (
            "<s><|start_header_id|>system<|end_header_id|>\n\nToday is 03 Feb 2031.\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )

    def test_tools(self) -> None:
        calls = [{"function": {"name": "weather", "arguments": {"city": "Orléans"}}}]
        messages = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "rain"},
            {"role": "tool", "content": {"mm": 3}},
        ]
        text = template("headers").render(messages, tools=[WEATHER], date_string="today")
        assert json.dumps(WEATHER, indent=4) in text
        assert '\n\n{"name": "weather", "parameters": {"city": "Orléans"}}<|eot_id|>' in text
        assert "<|start_header_id|>ipython<|end_header_id|>\n\nrain<|eot_id|>" in text
        assert '<|start_header_id|>ipython<|end_header_id|>\n\n{"mm": 3}<|eot_id|>' in text
        assert "Today is today." in text

    def test_loops(self) -> None:
        messages = [
            {"role": "note", "content": "x"},
            *HELLO,
            {"role": "assistant", "content": "Hi", "reasoning": "greet"},
        ]
        messages += [{"role": "end", "content": ""}, {"role": "user", "content": "more"}]
        documents = [{"title": "One", "text": "1"}]
        text = template("loops").render(messages, documents=documents, mood="bright", add_generation_prompt=False)
        assert text == ("<doc 1/1> One: 1\n<user>hello\n<assistant>Hi (greet)</s>\n2 assistant no tools BRIGHT\n")


class TestVariables:
    def test_special_tokens(self) -> None:
        assert rendered("{{ bos_token }}{{ eos_token }}{{ pad_token }}") == "<s></s>"

    def test_a_variable_wins(self) -> None:
        assert rendered("{{ bos_token }}", bos_token="<b>") == "<b>"

    def test_none_stays_none(self) -> None:
        assert rendered("{{ tools is none }}{{ documents is none }}") == "TrueTrue"
        assert rendered("{{ tools is none }}", tools=[]) == "False"

    def test_generation_prompt(self) -> None:
        assert rendered(PLAIN) == "<user>hello</user><answer>"
        assert rendered(PLAIN, add_generation_prompt=False) == "<user>hello</user>"

    def test_keys_that_are_none_are_absent(self) -> None:
        messages = [{"role": "assistant", "content": None, "tool_calls": []}]
        assert rendered("{{ 'content' in messages[0] }}{{ 'tool_calls' in messages[0] }}", messages) == "FalseTrue"

    @pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
    def test_reasoning_under_every_name(self, name: str) -> None:
        messages = [{"role": "assistant", "content": "", name: "hm"}]
        assert rendered("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}", messages) == "hmhm"

    def test_plain_copies(self) -> None:
        class Role(str, enum.Enum):
            USER = "user"

        class Level(enum.IntEnum):
            HIGH = 3

        message = {"role": Role.USER, "content": [{"type": "text", "n": Level.HIGH, "x": (1.5, True, None)}]}
        text = rendered("{{ messages | tojson }}{{ messages[0].role }}", [message])
        assert text == '[{"role": "user", "content": [{"type": "text", "n": 3, "x": [1.5, true, null]}]}]user'


class TestContinuation:
    ANSWER = (*HELLO, {"role": "assistant", "content": "Well, "})

    def test_ends_within_the_message(self) -> None:
        assert rendered(PLAIN, self.ANSWER, continue_final_message=True) == "<user>hello</user><assistant>Well, "

    def test_template_that_trims(self) -> None:
        source = PLAIN.replace("m.content", "m.content | trim")
        assert rendered(source, self.ANSWER, continue_final_message=True) == "<user>hello</user><assistant>Well,"

    def test_last_text_of_the_parts(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
        source = "{% for p in messages[-1].content %}{{ p.text }}|{% endfor %}"
        assert rendered(source, [{"role": "assistant", "content": parts}], continue_final_message=True) == "a|b"
        assert parts[1]["text"] == "b"

    def test_message_that_does_not_appear(self) -> None:
        assert "leaves out or changes the final message" in fails("x", continue_final_message=True).problem
        source = "{{ messages[-1].content | replace('hello', 'bye') }}"
        assert "leaves out or changes the final message" in fails(source, continue_final_message=True).problem

    def test_no_text(self) -> None:
        result = [{"role": "tool", "content": {"mm": 3}}]
        assert "no text to continue" in fails(PLAIN, result, continue_final_message=True).problem
        messages = [{"role": "assistant", "tool_calls": []}]
        assert "no text to continue" in fails(PLAIN, messages, continue_final_message=True).problem

    def test_contradiction(self) -> None:
        error = fails(PLAIN, add_generation_prompt=True, continue_final_message=True)
        assert "contradict each other" in error.problem


class TestConversations:
    @pytest.mark.parametrize(
        ("messages", "problem"),
        [
            ("hello", "the messages are a str, not a list"),
            ({"role": "user", "content": "x"}, "the messages are a dict, not a list"),
            (None, "the messages are a NoneType, not a list"),
            ([], "the list of messages is empty"),
            ([*HELLO, "x"], "message 1 is a str, not a dict"),
            ([{"content": "x"}], "message 0 has no role"),
            ([{"role": 5, "content": "x"}], "message 0 has no role"),
            ([{"role": "user"}], "message 0 has no content"),
            ([{"role": "user", "content": None}], "message 0 has no content"),
            ([{"role": "user", "content": 5}], "the content of message 0 is neither a string nor a list of parts"),
            ([{"role": "user", "content": ["x"]}], "the content of message 0 is neither"),
        ],
    )
    def test_malformed(self, messages: Any, problem: str) -> None:
        error = fails(PLAIN, messages)
        assert error.problem.startswith(f"the conversation is malformed: {problem}")
        assert '"role": "user"' in error.remedy

    def test_not_json(self) -> None:
        error = fails(PLAIN, [{"role": "user", "content": [{"image": b"x"}]}])
        assert error.problem == "message 0: a bytes is not a JSON value"
        assert "the template's variables: a object is not" in fails(PLAIN, clock=object()).problem

    def test_too_deep(self) -> None:
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]
        assert fails(PLAIN, [{"role": "user", "content": "", "x": nested}]).problem == "message 0: nested too deeply"

    @pytest.mark.parametrize("what", ["tools", "documents"])
    def test_lists_of_objects(self, what: str) -> None:
        assert f"{what} must be a list of JSON objects" in fails(PLAIN, **{what: "x"}).problem
        assert f"{what} must be a list of JSON objects" in fails(PLAIN, **{what: ["x"]}).problem


class TestFailures:
    def test_malformed(self) -> None:
        with pytest.raises(ChatTemplateError) as caught:
            ChatTemplate("a\nb {% if %}", where="the chat template of models/x")
        assert caught.value.problem.startswith(
            "the chat template of models/x is malformed: line 2: Expected an expression"
        )
        assert "--raw" in caught.value.remedy

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ("{{ 'x' | shout }}", "line 1: No filter named 'shout'."),
            ("{{" + "(" * 50_000, "nested too deeply"),
            ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ],
    )
    def test_malformed_otherwise(self, source: str, problem: str) -> None:
        error = fails(source)
        assert "the chat template is malformed" in error.problem
        assert problem in error.problem

    def test_rejection(self) -> None:
        error = fails(
            "{% if 'system' in messages[0].role %}ok{% else %}\n{{ raise_exception('no\nsystem message') }}{% endif %}"
        )
        assert error.problem == "the chat template rejects the conversation: no system message"

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ("\n{{ messages[0].a.b }}", "fails on this conversation at line 2: 'dict object' has no attribute 'a'"),
            ("\n\n{{ 1 + 'a' }}", "fails on this conversation at line 3: TypeError: unsupported operand"),
            ("{{ 1 / 0 }}", "fails on this conversation at line 1: ZeroDivisionError: division by zero"),
            ("{{ 'x' | center(10 ** 18) }}", "fails on this conversation at line 1: MemoryError"),
            (
                "{% for i in range(10 ** 6) %}{% endfor %}",
                "fails on this conversation at line 1: OverflowError: Range too big",
            ),
            ("{{ messages.append(1) }}", "does what the sandbox forbids at line 1: "),
            ("{{ 'a' * 10 ** 9 }}", "does what the sandbox forbids at line 1: the result of '*' is too large"),
            ("{% macro f() %}\n{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end at line 2: RecursionError"),
        ],
    )
    def test_while_rendering(self, source: str, problem: str) -> None:
        assert fails(source).problem.startswith(f"the chat template {problem}")

    def test_messages_are_not_endless(self) -> None:
        assert len(fails("{{ raise_exception('a ' * 1000) }}").problem) < 400
