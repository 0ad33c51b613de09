from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.grammars.grammar import MOST_CHARACTERS, Grammar


class TestAsked:
    def test_nothing(self) -> None:
        assert Grammar.of(None) is None

    def test_a_schema_is_an_object_or_its_json(self) -> None:
        schema = {"type": "object", "properties": {"straße": {"type": "string"}}}
        asked = Grammar.of(schema)
        assert asked == Grammar.of(json.dumps(schema, ensure_ascii=False))
        assert asked is not None
        assert (asked.kind, json.loads(asked.text)) == ("schema", schema)

    def test_only_one(self) -> None:
        with pytest.raises(UsageError, match="schema and regex are given together"):
            Grammar.of({}, "a+")

    @pytest.mark.parametrize("value", [5, [], b"a", "", True])
    @pytest.mark.parametrize("name", ["schema", "regex", "grammar"])
    def test_what_is_no_text(self, name: str, value: Any) -> None:
        with pytest.raises(UsageError, match=f"{name}=.* is no "):
            Grammar.of(**{"schema": None} | {name: value})

    @pytest.mark.parametrize("schema", [{"a": object()}, {"a": float("nan")}])
    def test_a_schema_that_is_not_json(self, schema: Any) -> None:
        with pytest.raises(UsageError, match="This schema is not JSON"):
            Grammar.of(schema)

    def test_one_that_is_too_long(self) -> None:
        with pytest.raises(UsageError, match="regular expression of 1,048,577 characters is too long"):
            Grammar.of(None, "a" * (MOST_CHARACTERS + 1))


class TestSource:
    @pytest.mark.parametrize(
        "grammar",
        [
            Grammar("schema", '{"type": "object"}'),
            Grammar("schema", "{}"),
            Grammar("regex", "(yes|no)[.!]?"),
            Grammar("grammar", 'start: "a" start | "b"'),
            Grammar("grammar", 'root ::= "a" root | [0-9]+'),
        ],
        ids=["object", "anything", "regex", "lark", "gbnf"],
    )
    def test_sound_ones(self, grammar: Grammar) -> None:
        assert grammar.source()

    @pytest.mark.parametrize(
        ("grammar", "reason"),
        [
            (Grammar("schema", "{"), "JSON schema cannot be followed"),
            (Grammar("schema", '{"type": "number", "not": {"type": "integer"}}'), "not"),
            (Grammar("schema", '{"$ref": "https://example.com/schema.json"}'), "cannot be followed"),
            (Grammar("schema", '{"type": "colour"}'), "cannot be followed"),
            (Grammar("schema", "5"), "cannot be followed"),
            (Grammar("schema", "true"), "object schema"),
            (Grammar("schema", '{"allOf": [{"type": "string"}, {"type": "number"}]}'), "nsatisfiable"),
            (Grammar("regex", "(a"), "regular expression cannot be followed"),
            (Grammar("regex", "(?=a)b"), "look-around"),
            (Grammar("grammar", "start: nothing"), "grammar cannot be followed"),
            (Grammar("grammar", 'root ::= "a'), "grammar cannot be followed"),
        ],
    )
    def test_what_cannot_be_followed_is_refused(self, grammar: Grammar, reason: str) -> None:
        """A keyword that could not be held to is an error: it is never left out in silence."""
        with pytest.raises(UsageError, match=reason) as error:
            grammar.source()
        assert "docs/structured.md" in error.value.remedy

    @pytest.mark.parametrize(
        "text",
        [
            json.dumps({"anyOf": [{"type": "string", "pattern": "(a|b|c){1,900}(d|e){1,900}"}] * 3}),
            json.dumps({"type": "string", "pattern": "((a{1,99}){1,99}){1,99}"}),
            '{"items":' * 400 + "{}" + "}" * 400,
            "[" * 100_000,
            json.dumps({"enum": [f"{i:09}" for i in range(60_000)]}),
        ],
        ids=["alternatives", "repeats", "nested", "brackets", "enum"],
    )
    def test_hostile_ones_end_soon(self, text: str) -> None:
        """Whether they are taken or refused."""
        with suppress(UsageError):
            assert Grammar("schema", text).source()
