"""Prompts that go on from tokens that are there."""

from __future__ import annotations

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import DEMO
from penstock.sessions.follow_up import appended, common_length, extended
from penstock.text.tokenizer import Tokenizer

DEMO_TOKENIZER = Tokenizer.open(DEMO)
assert DEMO_TOKENIZER is not None
TOKENIZER = DEMO_TOKENIZER


def decoded(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, skip_special_tokens=False)


def test_what_begins_with_what_is_held_keeps_all_of_it() -> None:
    held = [TOKENIZER.encode(c, add_special_tokens=False)[0] for c in "def"]  # never so by itself
    tokens = extended(TOKENIZER, held, "def add(a):")
    assert tokens[:3] == held
    assert decoded(tokens) == "def add(a):"


def test_special_tokens_of_a_template_are_what_they_are() -> None:
    eot = TOKENIZER.token_id("<|eot_id|>")
    held = TOKENIZER.encode("hello")
    tokens = extended(TOKENIZER, held, decoded(held) + "<|eot_id|>more")
    assert tokens[: len(held) + 1] == [*held, eot]


def test_what_a_template_trims_goes_and_all_before_it_stays() -> None:
    held = TOKENIZER.encode("class A:\n    pass\n\n\n")
    text = decoded(held).rstrip() + "<|eot_id|>"
    tokens = extended(TOKENIZER, held, text)
    assert decoded(tokens) == text
    assert common_length(tokens, held) >= len(held) - 3


def test_text_is_appended() -> None:
    held = TOKENIZER.encode("def add")
    tokens = appended(TOKENIZER, held, "(a, b):")
    assert tokens[: len(held)] == held
    assert TOKENIZER.decode(tokens) == "def add(a, b):"
    assert appended(TOKENIZER, [], "def add") == held


def test_a_tokenizer_that_puts_a_space_first() -> None:
    """Encoding the rest by itself would put one amid the text, so all of it is encoded."""
    vocab = {"▁a": 0, "▁b": 1, "a": 2, "b": 3, "▁": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({**vocab, "[UNK]": 5}, unk_token="[UNK]"))  # type: ignore[attr-defined]
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()  # type: ignore[attr-defined]
    backend.decoder = tokenizers.decoders.Metaspace()  # type: ignore[attr-defined]
    tokenizer = Tokenizer(backend)
    held = tokenizer.encode("a")
    assert extended(tokenizer, held, "a b") == tokenizer.encode("a b")


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=12), st.text(max_size=12), st.integers(0, 12))
def test_it_spells_the_text_whatever_is_held(held: list[int], more: str, cut: int) -> None:
    text = decoded(held)[: max(0, len(decoded(held)) - cut)] + more
    tokens = extended(TOKENIZER, held, text)
    assert decoded(tokens) == text or tokens == TOKENIZER.encode(text, add_special_tokens=False)
