from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.openai_api.tool_calls import Argued, Called, Said, ToolCalls
from penstock.openai_api.tool_formats import GRANITE, HERMES, LLAMA, MISTRAL, PHI, ToolFormat, tool_format

NAMES = ("add", "get_weather")
ROME, ADD = '{"city": "Rome", "at": {"a": ["}", "{\\""]}}', '{"a": 1}'


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
    ],
)
def test_a_template_tells_the_format(template: str, form: ToolFormat | None) -> None:
    assert tool_format(template) == form


def test_json() -> None:
    """The samples above are what they are meant to be."""
    assert json.loads(ROME)["at"]["a"] == ["}", '{"']
