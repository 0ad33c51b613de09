"""What answers that call functions are held to."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from helpers.cases import DEMO
from penstock.grammars.grammar import Grammar
from penstock.openai_api.tool_formats import HERMES, LLAMA, ToolFormat, call_grammar
from penstock.text.tokenizer import Tokenizer

POINT: Any = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
MOVE: Any = {
    "$defs": {"Point": POINT},
    "type": "object",
    "properties": {"to": {"$ref": "#/$defs/Point"}},
    "required": ["to"],
    "additionalProperties": False,
}
"""As pydantic has a model with another in it."""
TREE: Any = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$ref": "#/definitions/Tree",
    "definitions": {
        "Tree": {
            "type": "object",
            "properties": {"to": {"anyOf": [POINT, {"$ref": "#/definitions/Tree"}]}},
            "required": ["to"],
            "additionalProperties": False,
        }
    },
}
"""As others have one that is a part of itself."""
OTHER: Any = {**MOVE, "$defs": {"Point": {"type": "string"}}}


@cache
def tokenizer() -> Tokenizer:
    found = Tokenizer.open(DEMO)
    assert found is not None
    return found


@cache
def vocabulary() -> LLTokenizer:
    return LLTokenizer(tokenizer().to_json())


def follows(text: str, form: ToolFormat, schemas: dict[str, Any], *, must: bool) -> bool:
    """Whether this may be the whole answer."""
    grammar = Grammar("grammar", call_grammar(form, schemas, tokenizer(), must=must, several=False))
    matcher = LLMatcher(vocabulary(), grammar.source())
    tokens = tokenizer().encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def call(form: ToolFormat, name: str, arguments: str) -> str:
    return f'{form.opening}{{"name": "{name}", "{form.arguments}": {arguments}}}{form.closing}'


@pytest.mark.parametrize("must", [True, False])
@pytest.mark.parametrize("form", [HERMES, LLAMA])
@pytest.mark.parametrize(
    "more", [{}, {"$id": "https://app.example/move"}, {"$schema": "http://json-schema.org/draft-04/schema#"}]
)
def test_references_are_followed(form: ToolFormat, must: bool, more: dict[str, Any]) -> None:
    """In each function's own schema, of whatever draft and address it is."""
    schemas = {"move": MOVE | more, "tree": TREE, "other": OTHER | more}
    for name, good, bad in (
        ("move", '{"to": {"x": 1}}', '{"to": {"x": "1"}}'),
        ("tree", '{"to": {"to": {"x": 1}}}', '{"to": {"to": {"x": "1"}}}'),
        ("other", '{"to": "1"}', '{"to": {"x": 1}}'),
    ):
        assert follows(call(form, name, good), form, schemas, must=must)
        assert not follows(call(form, name, bad), form, schemas, must=must)


def test_a_property_that_is_called_so() -> None:
    schema = {**POINT, "properties": {"$ref": {"type": "integer"}, "$id": {"type": "integer"}}, "required": ["$ref"]}
    assert follows(call(LLAMA, "f", '{"$ref": 1, "$id": 2}'), LLAMA, {"f": schema}, must=True)
    assert not follows(call(LLAMA, "f", '{"$ref": "a"}'), LLAMA, {"f": schema}, must=True)


def test_a_reference_beside_others() -> None:
    least = {"properties": {"x": {"minimum": 5}}}
    schema = {"$ref": "#/$defs/Point", "$defs": {"Point": POINT}, "allOf": [least]}
    assert follows(call(LLAMA, "f", '{"x": 5}'), LLAMA, {"f": schema}, must=True)
    assert not follows(call(LLAMA, "f", '{"x": 4}'), LLAMA, {"f": schema}, must=True)


def test_no_schema_is_any_object() -> None:
    assert follows(call(LLAMA, "f", '{"a": [1]}'), LLAMA, {"f": {}}, must=True)
    assert not follows(call(LLAMA, "f", "5"), LLAMA, {"f": {}}, must=True)
