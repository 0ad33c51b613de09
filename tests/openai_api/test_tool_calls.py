from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.openai_api import tool_calls
from penstock.openai_api.tool_calls import Argued, Called, Said, ToolCalls
from penstock.openai_api.tool_formats import GRANITE, HERMES, LLAMA, MISTRAL, PHI, ToolFormat, tool_format

NAMES = ("add", "get_weather")
ROME, ADD = '{"city": "Rome", "at": {"a": ["}", "{\\""]}}', '{"a": 1}'
NO_JSON = '"Rome, {"'


def call(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


ANSWERS: dict[str, tuple[ToolFormat, str, str, list[tuple[str, str]]]] = {
    "hermes": (
        HERMES,
        f"I look.\n<tool_call>\n{call('get_weather', ROME)}\n</tool_call>\n"
        f"<tool_call>\n{call('add', ADD)}\n</tool_call>",
        "I look.",
        [("get_weather", ROME), ("add", ADD)],
    ),
    "hermes, text only": (HERMES, "1 < 2, <tool> {} and <tool_call", "1 < 2, <tool> {} and <tool_call", []),
    "hermes, text behind": (
        HERMES,
        f"<tool_call>\n{call('add', ADD)}\n</tool_call>\nDone.",
        "Done.",
        [("add", ADD)],
    ),
    "another order": (
        HERMES,
        '<tool_call>\n{"arguments": {"a": 1}, "id": 5, "name": "add"}\n</tool_call>',
        "",
        [("add", ADD)],
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    "arguments that are a string": (
        HERMES,
        f"<tool_call>{call('add', json.dumps(ROME))}</tool_call>",
        "",
        [("add", ROME)],
    ),
    "so in another order": (
        LLAMA,
        f'{{"parameters": {json.dumps(ROME)}, "name": "add"}}',
        "",
        [("add", ROME)],
    ),
    "a string that is no JSON": (
        HERMES,
        f"<tool_call>{call('add', NO_JSON)}</tool_call>",
        "",
        [("add", NO_JSON)],
    ),
    "a string that is cut": (HERMES, f"<tool_call>{call('add', NO_JSON)[:-2]}", "", [("add", NO_JSON[:-1])]),
    "half a character": (
        HERMES,
        '<tool_call>{"arguments": {"a": "\\ud83d"}, "name": "add"}</tool_call>',
        "",
        [("add", '{"a": "\\ud83d"}')],
    ),
    "not among the tools": (HERMES, f"<tool_call>{call('rm', ADD)}", call("rm", ADD), []),
    "cut": (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": ', "", [("add", '{"a": ')]),
    "cut before its name": (HERMES, '<tool_call>\n{"name": "ad', '{"name": "ad', []),
    "llama": (LLAMA, call("get_weather", ROME, "parameters"), "", [("get_weather", ROME)]),
    "llama, a token before it": (LLAMA, f"<|python_tag|>{call('add', ADD, 'parameters')}", "", [("add", ADD)]),
    "llama, several": (
        LLAMA,
        f"{call('add', ADD, 'parameters')}; {call('add', '{}', 'parameters')}",
        "",
        [("add", ADD), ("add", "{}")],
    ),
    "llama, text": (LLAMA, "[It is] 5; or {}", "[It is] 5; or {}", []),
    "llama, json that is no call": (LLAMA, '{"a": {"b": 1}} then', '{"a": {"b": 1}} then', []),
    "mistral": (
        MISTRAL,
        f"[TOOL_CALLS][{call('add', ADD)}, {call('get_weather', ROME)}]",
        "",
        [("add", ADD), ("get_weather", ROME)],
    ),
    "phi": (PHI, f"<|tool_call|>[{call('add', ADD)}]<|/tool_call|>", "", [("add", ADD)]),
    "granite": (GRANITE, f"<|tool_call|>[{call('add', ADD)}]", "", [("add", ADD)]),
}


@pytest.mark.parametrize("name", ANSWERS)
@given(data=st.data())
def test_however_the_text_is_cut(name: str, data: Any) -> None:
    """What is told piece by piece is what a look at the whole tells."""
    form, text, said, calls = ANSWERS[name]
    answer = ToolCalls(form, NAMES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    events = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += answer.push(text[begin:end])
    events += answer.finish()
    assert answer.said == said == "".join(event.text for event in events if isinstance(event, Said))
    assert [(each.name, each.arguments) for each in answer.calls] == calls
    for index, (called, arguments) in enumerate(calls):
        assert [event for event in events if isinstance(event, Called) and event.call == index] == [
            Called(index, called)
        ]
        told = [event.text for event in events if isinstance(event, Argued) and event.call == index]
        assert "".join(told) == arguments


def test_arguments_are_told_as_they_come() -> None:
    answer = ToolCalls(HERMES, NAMES)
    assert answer.push('<tool_call>\n{"name": "add", "arguments": {"a"') == [Called(0, "add"), Argued(0, '{"a"')]
    assert answer.push(": 12") == [Argued(0, ": 12")]
    assert answer.push("}}\n</tool_call>") == [Argued(0, "}")]
    assert answer.finish() == []


@pytest.mark.parametrize("name", ['{"first": "Ada"}', '["add"]', "5", "1.5", "true", "null"])
@pytest.mark.parametrize("form", [HERMES, LLAMA])
def test_a_name_that_is_no_string(form: ToolFormat, name: str) -> None:
    """Is text, like all objects that are no call."""
    answer = ToolCalls(form, NAMES)
    written = f'{{"name": {name}, "age": 3}}'
    assert [*answer.push(form.opening + written), *answer.finish()] == [Said(written)]


def lines_run(pieces: list[str]) -> int:
    """Lines of tool_calls.py that run while it takes these."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == tool_calls.__file__ else None

    answer, before = ToolCalls(LLAMA, NAMES), sys.gettrace()
    sys.settrace(trace)
    try:
        for piece in pieces:
            answer.push(piece)
    finally:
        sys.settrace(before)
    assert answer.said == ""
    return count


@pytest.mark.parametrize("begin", ['{"value": ', '{"name": ["', '{"name": "'])
def test_work_is_linear(begin: str) -> None:
    """Of what is held back, however many pieces it comes in."""
    once, twice = (lines_run([begin, *["12 "] * count]) for count in (200, 400))
    assert twice < 2.2 * once


@given(
    st.text(alphabet='{}[]",:<>/|tool_calnmeadrgus \n\\', max_size=80), st.sampled_from([HERMES, LLAMA, MISTRAL, PHI])
)
def test_anything_at_all(text: str, form: ToolFormat) -> None:
    """Nothing is made up: what is said and called was all in the text."""
    answer = ToolCalls(form, NAMES)
    answer.push(text)
    answer.finish()
    assert len(answer.said) + sum(len(each.arguments) for each in answer.calls) <= len(text) + 2 * len(answer.calls)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ('{% if tools %}{"name": function name, "parameters": ...}{% endif %}', LLAMA),
        ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% if tools %}<|tool_call|><|/tool_call|>{% endif %}", PHI),
        ("{% if tools %}<|tool_call|>{% endif %}", GRANITE),
        ('{% if tools %}{{ \'{\\"name\\": function name, \\"parameters\\": its arguments}\' }}{% endif %}', LLAMA),
        # Formats that are not read: Qwen3-Coder, GLM 4.5, Mistral Small 3.2, Command R, gpt-oss, DeepSeek V3.1, none.
        ("{% if tools %}<tool_call>\n<function=name>\n<parameter=p>{% endif %}", None),
        ("{% if tools %}<tool_call>{name}\n<arg_key>{key}</arg_key>{% endif %}", None),
        ("{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}{% endif %}", None),
        ('{% if tools %}{"tool_name": "{{ name }}", "parameters": {{ arguments }}}{% endif %}', None),
        ('{% for tool in tools %}{"name": "{{ tool.name }}", "description": "", "parameters": {}}{% endfor %}', None),
        ("{% if tools %}<|channel|>commentary to=functions.{{ parameters }}{% endif %}", None),
        ("{% if tools %}<｜tool▁calls▁begin｜>{% endif %}", None),  # noqa: RUF001
        ("{{ tools | tojson }}", None),
    ],
)
def test_a_template_tells_the_format(template: str, form: ToolFormat | None) -> None:
    assert tool_format(template) == form


def test_json() -> None:
    """The samples above are what they are meant to be."""
    assert json.loads(ROME)["at"]["a"] == ["}", '{"']
