"""What may be asked of an answer, as text that can be kept and compared, and as the grammar that it stands for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from penstock.errors import UsageError
from penstock.strict_json import shown

ANY_OBJECT = '{"type": "object"}'
"""The schema of all JSON objects."""
MOST_CHARACTERS = 1 << 20
"""Of a schema, an expression or a grammar."""
MOST_BRACKETS, MOST_LINES = 8192, 1000
"""Of a schema or a grammar, and of a grammar, which has a rule a line: so deep may what refers to one another be."""
STACK = 64 << 20
"""Bytes of a stack on which the library goes down so deep. On a shorter one it would take the process down with it."""
MOST_GBNF = 32 << 10
"""Characters of a grammar in llama.cpp's notation: the library rewrites it in a time that grows with their square."""
LARK = re.compile(r"^[^\S\n]*(%llguidance\b|start\s*:)", re.MULTILINE)
"""By this the library tells Lark's notation from the other, here without looking at white space again and again."""
SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of JSON: on one line, as models write it most. Free white space would be tokens that say nothing, and a small model
may never end it."""
KEPT = 8
"""Grammars that are kept, as text and compiled: the same schema comes again and again."""
_STARTING = threading.Lock()
"""Whoever starts such a thread: how long stacks are to be is a setting of the whole process."""
LIMITS = LLParserLimits(max_lexer_states=30_000, max_grammar_size=200_000, verbose_errors=False)
"""What one grammar may take, some 60 MB at most; as much of a stack for a moment, where it is as deep as it may be."""

T = TypeVar("T")
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
        sizes = {"characters": (len(self.text), MOST_CHARACTERS)}
        if self.kind != "regex":
            sizes["brackets"] = (sum(map(self.text.count, "{[(")), MOST_BRACKETS)
        if self.kind == "grammar":
            sizes["lines"] = (self.text.count("\n"), MOST_LINES)
        for unit, (size, most) in sizes.items():
            if size > most:
                raise UsageError(
                    f"A {NAMES[self.kind]} of {size:,} {unit} is too long.", f"Give one of at most {most:,}."
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
        elif grammar.kind == "grammar":
            source = LLMatcher.grammar_from_lark(_in_lark(grammar.text))
        else:
            source = LLMatcher.grammar_from_regex(grammar.text)
    except (ValueError, RecursionError) as error:
        raise grammar.refused(str(error)) from error
    failed, messages = deep(lambda: LLMatcher.validate_grammar_with_warnings(source, limits=LIMITS))
    if failed:
        raise grammar.refused(messages[0])
    return source


def deep(work: Callable[[], T]) -> T:
    """What `work` of the library's with a grammar gives, done in a thread whose stack is long enough for that."""
    with ThreadPoolExecutor(1, "grammar") as pool:
        with _STARTING:
            before = threading.stack_size(STACK)
            try:
                done = pool.submit(work)
            finally:
                threading.stack_size(before)
        return done.result()


def _in_lark(text: str) -> str:
    """A grammar in Lark's notation. Raises ValueError, and UsageError for one that would take too long to rewrite."""
    if LARK.search(text):
        return text
    if len(text) > MOST_GBNF:
        raise UsageError(
            f"A grammar of {len(text):,} characters in llama.cpp's notation (GBNF) is too long.",
            f"Give one of at most {MOST_GBNF:,}, or write it in Lark's notation, with a rule `start`.",
        )
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # the library raises plain ones
        raise ValueError(f"it is neither Lark nor GBNF: {error}") from error


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"This schema is not JSON: {error}", "Give what json.dumps can write.") from error
