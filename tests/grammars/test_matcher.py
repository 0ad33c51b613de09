from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from helpers.cases import DEMO
from penstock.errors import GrammarError, MemoryCeilingError, TokenizerError, UsageError
from penstock.grammars.compiler import GrammarCompiler
from penstock.grammars.grammar import KEPT, Grammar
from penstock.text.tokenizer import Tokenizer

SCHEMA = Grammar(
    "schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "kind": {"enum": ["cat", "cow", 5]}, "n": {"type": "integer"}},
            "required": ["name", "kind", "n"],
            "additionalProperties": False,
        }
    ),
)
TOKENIZER = Tokenizer.open(DEMO)
assert TOKENIZER is not None
VOCAB = TOKENIZER.vocab_size + 3  # a model may have more
END = 0


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    assert TOKENIZER is not None
    return GrammarCompiler(TOKENIZER.to_json, VOCAB, [END])


def written(text: str) -> list[int]:
    assert TOKENIZER is not None
    return TOKENIZER.encode(text, add_special_tokens=False)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(['{"name": "Ada', '{"name": "", "kind": "c', '{"name": "x", "kind": 5, "n": -1', ""]), st.data())
def test_a_mask_says_what_each_token_says(text: str, data: Any) -> None:
    assert TOKENIZER is not None
    matcher = GrammarCompiler(TOKENIZER.to_json, VOCAB, [END]).matcher(SCHEMA)
    tokens = written(text)
    at = data.draw(st.integers(0, len(tokens)))
    for token in tokens[:at]:
        matcher.take(token)
    assert matcher.allows(tokens[at:])
    before = matcher.mask()
    with matcher.after(tokens[at:]):
        mask = matcher.mask()
        some = [*range(0, VOCAB, 7), *np.flatnonzero(mask)[:50].tolist()]
        alone = [matcher.allows([token]) for token in some]
    assert mask.shape == (VOCAB,)
    assert alone == [matcher.allows([*tokens[at:], token]) for token in some] == mask[some].tolist()
    assert (matcher.mask() == before).all(), "looking ahead changes nothing"
    assert not mask[TOKENIZER.vocab_size :].any()


def test_what_is_forced(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(SCHEMA)
    forced = matcher.forced()
    assert forced == written('{"name": "x')[: len(forced)] != []
    with matcher.after(forced):
        assert matcher.forced() == []
    assert matcher.forced() == forced, "looking ahead changes nothing"
    for token in forced:
        matcher.take(token)
    assert matcher.forced() == []


def test_the_end(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(Grammar("regex", "ab+"))
    for token in written("abb"):
        assert not matcher.ended
        matcher.take(token)
    assert not matcher.ended
    assert matcher.mask()[END]
    closed = compiler.matcher(Grammar("regex", "abb"))
    for token in written("abb"):
        closed.take(token)
    assert (closed.ended, closed.forced()) == (True, [])


def test_a_token_that_may_not_follow(compiler: GrammarCompiler) -> None:
    matcher = compiler.matcher(SCHEMA)
    with pytest.raises(GrammarError, match="cannot follow its grammar any further"):
        matcher.take(written("[")[0])
    assert (matcher.mask() == compiler.matcher(SCHEMA).mask()).all(), "it has not been taken"


def test_matchers_of_one_grammar_go_their_own_ways(compiler: GrammarCompiler) -> None:
    first, second = compiler.matcher(SCHEMA), compiler.matcher(SCHEMA)
    first.take(first.forced()[0])
    assert second.allows(written('{"name": "a'))
    assert not first.allows(written('{"name": "a'))


def test_only_some_grammars_are_kept(compiler: GrammarCompiler) -> None:
    for count in range(3 * KEPT):
        compiler.matcher(Grammar("regex", f"a{{{count + 1}}}"))
    assert len(compiler._kept) == KEPT
    with pytest.raises(UsageError):
        compiler.matcher(Grammar("regex", "("))


def test_memory() -> None:
    """Nothing is taken before the first grammar comes, and nothing where it does not fit."""
    assert TOKENIZER is not None
    asked: list[int] = []
    compiler = GrammarCompiler(TOKENIZER.to_json, VOCAB, [END], asked.append)
    with pytest.raises(UsageError):
        compiler.matcher(Grammar("schema", "{"))
    assert (asked, compiler.told_bytes) == ([], 0)
    compiler.matcher(SCHEMA)
    compiler.matcher(Grammar("regex", "a"))
    assert asked == [compiler.told_bytes]
    assert compiler.most_told_bytes == compiler.told_bytes > 640 * VOCAB

    def none(nbytes: int) -> None:
        raise MemoryCeilingError("no room", "")

    full = GrammarCompiler(TOKENIZER.to_json, VOCAB, [END], none)
    with pytest.raises(MemoryCeilingError):
        full.matcher(SCHEMA)
    assert full.told_bytes == 0


def test_a_tokenizer_that_the_library_does_not_take() -> None:
    with pytest.raises(TokenizerError, match="cannot be held to a grammar"):
        GrammarCompiler(lambda: "{}", VOCAB, [END]).matcher(SCHEMA)


def test_text_that_spells_out_a_token_of_its_own() -> None:
    """The library takes it for that token, which is no text: the answer ends with an error, and never with a wrong
    text."""
    assert TOKENIZER is not None
    special = next(token for token in (TOKENIZER.token(i) for i in sorted(TOKENIZER.special_ids)) if token)
    matcher = GrammarCompiler(TOKENIZER.to_json, VOCAB, [END]).matcher(
        Grammar("schema", json.dumps({"const": special}))
    )

    def write() -> None:
        while not matcher.ended:
            matcher.take((matcher.forced() or np.flatnonzero(matcher.mask()).tolist())[0])

    with pytest.raises(GrammarError):
        write()


def test_a_table_of_states_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at, and what other answers met, fill the one that the library has for a grammar: nobody's answer
    ends with that."""
    monkeypatch.setattr("penstock.grammars.compiler.LIMITS", LLParserLimits(max_lexer_states=1500))
    assert TOKENIZER is not None
    compiler = GrammarCompiler(TOKENIZER.to_json, VOCAB, [END])
    grammar, compiled, draws = Grammar("regex", "[ab]*a[ab]{14}c"), [], random.Random(1)
    compile_ = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda grammar: compiled.append(1) or compile_(grammar))
    matcher, alone = compiler.matcher(grammar), compiler.matcher(grammar)
    for token in written("abba"):
        for _ in range(100):
            with suppress(GrammarError), matcher.after(written("".join(draws.choices("ab", k=20)))):
                with suppress(GrammarError), matcher.after(written("a")):
                    matcher.forced()
                matcher.mask()
        assert matcher.allows([token])
        assert (matcher.mask() == alone.mask()).all()
        matcher.take(token)
        alone.take(token)
        assert not matcher.ended
    assert len(compiled) > 1
    with pytest.raises(GrammarError):
        matcher.take(written("x")[0])
