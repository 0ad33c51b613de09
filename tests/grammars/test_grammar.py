from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.grammars.grammar import MOST_BRACKETS, MOST_CHARACTERS, MOST_GBNF, MOST_LINES, Grammar

DEEP = """
import json
from helpers.cases import DEMO
from penstock.grammars.compiler import GrammarCompiler
from penstock.grammars.grammar import MOST_BRACKETS, MOST_LINES, Grammar
from penstock.text.tokenizer import Tokenizer

compiler = GrammarCompiler(Tokenizer.open(DEMO).to_json, 4096, [4])
link = lambda n: {"type": "array", "items": {"$ref": f"#/$defs/{n}"}}
count = MOST_BRACKETS // 2 - 2
schema = {"$ref": "#/$defs/0", "$defs": {n: link(n + 1) for n in range(count)} | {count: {}}}
lark = "start: r0\\n" + "\\n".join(f'r{n}: "a" r{n + 1}' for n in range(MOST_LINES - 1)) + f'\\nr{MOST_LINES - 1}: "b"'
for grammar in (Grammar("schema", json.dumps(schema)), Grammar("grammar", lark)):
    assert compiler.matcher(grammar).mask().any()
"""


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
        with pytest.raises(UsageError, match="JSON schema of 8,193 brackets is too long"):
            Grammar.of("[" * (MOST_BRACKETS + 1))
        with pytest.raises(UsageError, match="grammar of 1,001 lines is too long") as error:
            Grammar.of(None, None, "\n" * (MOST_LINES + 1))
        assert error.value.remedy == "Give one of at most 1,000."
        assert Grammar.of(None, "[a]" * MOST_BRACKETS + "\n" * MOST_BRACKETS)


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

    def test_gbnf_that_is_too_long(self) -> None:
        """The library would take minutes to rewrite it."""
        rules = "".join(f'r{index} ::= r{index + 1} "{"x" * 32}"\n' for index in range(MOST_LINES - 1))
        with pytest.raises(UsageError, match=r"characters in llama.cpp's notation \(GBNF\) is too long") as error:
            Grammar("grammar", f"root ::= r0\n{rules}").source()
        assert "at most 32,768" in error.value.remedy

    def test_lark_may_be_longer(self) -> None:
        words = " | ".join(f'"{index:04}"' for index in range(MOST_GBNF // 8))
        assert Grammar("grammar", f"\n \t\nstart : {words}").source()

    def test_white_space_is_looked_at_once(self) -> None:
        with pytest.raises(UsageError, match="too long"):
            Grammar("grammar", "\n" * MOST_LINES + " " * (MOST_CHARACTERS - MOST_LINES)).source()

    def test_what_refers_to_one_another_may_be_deep(self) -> None:
        """In a process of its own, which a stack that is too short would end."""
        subprocess.run([sys.executable, "-c", DEEP], check=True, cwd=Path(__file__).parents[1])

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
