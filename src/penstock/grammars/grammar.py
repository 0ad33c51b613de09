"""What may be asked of an answer, as text that can be kept and compared, and as the grammar that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import llguidance
from llguidance import LLMatcher, LLParserLimits

from penstock.errors import UsageError
from penstock.strict_json import shown

ANY_OBJECT = '{"type": "object"}'
"""The schema of all JSON objects."""
MOST_CHARACTERS = 1 << 20
"""Of a schema, an expression or a grammar."""
SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of JSON: on one line, as models write it most. Free white space would be tokens that say nothing, and a small model
may never end it."""
KEPT = 8
"""Grammars that are kept, as text and compiled: the same schema comes again and again."""
LIMITS = LLParserLimits(max_lexer_states=30_000, max_grammar_size=200_000, verbose_errors=False)
"""What one grammar may take, some 60 MB at most."""

Kind = Literal["schema", "regex", "grammar"]
NAMES: Mapping[Kind, str] = {"schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to be.

    schema: JSON that a JSON Schema, given as JSON, describes; regex: text that a regular expression matches as a whole
    (the syntax of Rust's `regex`); grammar: text of a context-free grammar, in Lark's or llama.cpp's (GBNF) notation.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS:
            raise UsageError(
                f"A {NAMES[self.kind]} of {len(self.text):,} characters is too long.",
                f"Give one of at most {MOST_CHARACTERS:,}.",
            )

    @classmethod
    def of(
        cls, schema: Mapping[str, Any] | str | None, regex: str | None = None, grammar: str | None = None
    ) -> Grammar | None:
        """What these ask for, at most one of them. Raises UsageError for several, and for what is no text or schema."""
        asked = {name: value for name, value in zip(NAMES, (schema, regex, grammar), strict=True) if value is not None}
        if not asked:
            return None
        if len(asked) > 1:
            raise UsageError(f"{' and '.join(asked)} are given together.", "An answer follows one of them: give one.")
        [(kind, value)] = asked.items()
        if kind == "schema" and isinstance(value, Mapping):
            value = _json(value)
        if not isinstance(value, str) or not value:
            takes = "a JSON Schema, as an object or as its JSON" if kind == "schema" else "text that is not empty"
            raise UsageError(f"{kind}={shown(value)} is no {NAMES[kind]}.", f"Give {takes}.")
        return cls(kind, value)

    def source(self) -> str:
        """The grammar as the library takes it. Raises UsageError for what makes none."""
        return _source(self)

    def refused(self, reason: str) -> UsageError:
        """Why it cannot be followed."""
        reason = " ".join(reason.split())[:400]
        return UsageError(
            f"This {NAMES[self.kind]} cannot be followed: {reason}",
            "Change it, or leave it out; docs/structured.md says what is supported.",
        )


@lru_cache(KEPT)
def _source(grammar: Grammar) -> str:
    """A request is looked at more than once on its way: as it comes, as it is admitted, as it begins."""
    try:
        if grammar.kind == "schema":
            source = LLMatcher.grammar_from_json_schema(grammar.text, overrides=SEPARATORS)  # type: ignore[arg-type]
        else:
            source = llguidance.grammar_from(grammar.kind, grammar.text)
    except (ValueError, RecursionError) as error:
        raise grammar.refused(str(error)) from error
    failed, messages = LLMatcher.validate_grammar_with_warnings(source, limits=LIMITS)
    if failed:
        raise grammar.refused(messages[0])
    return source


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"This schema is not JSON: {error}", "Give what json.dumps can write.") from error
