"""The most characters that a token stands for: never too few, whatever the tokenizer does on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import DEMO
from penstock.text.spelling import most_characters_a_token

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTENT = json.loads((DEMO / "tokenizer.json").read_text())


def bpe(words: list[str], merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
    vocab = {word: index for index, word in enumerate(words)}
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges, **options))


def demo(**parts: Any) -> tokenizers.Tokenizer:
    """The demo's tokenizer with other parts."""
    return tokenizers.Tokenizer.from_str(json.dumps(CONTENT | parts))


def sentencepiece() -> tokenizers.Tokenizer:
    """As the Llama 2 family has it: one word a text, spaces written as ▁, bytes for what is unknown."""
    words = [*BYTES, "▁", "a", "b", "▁a", "▁ab"]
    made = bpe(words, [("▁", "a"), ("▁a", "b")], byte_fallback=True)
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    return made


def composing() -> tokenizers.Tokenizer:
    made = demo()
    made.normalizer = tokenizers.normalizers.NFC()
    return made


def unknown_by_one() -> tokenizers.Tokenizer:
    return bpe(["?", "a", "aa"], [("a", "a")], unk_token="?", fuse_unk=False)


def with_normalized_token() -> tokenizers.Tokenizer:
    made = unknown_by_one()
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.add_tokens([tokenizers.AddedToken("İİİİ", normalized=True)])
    return made


BOUNDED = {
    "byte-level": demo(),
    "sentencepiece": sentencepiece(),
    "composing": composing(),
    "unknown": unknown_by_one(),
    "normalized": with_normalized_token(),
}
PIECES = ["<|eot_id|>", "a" * 41, "\n" * 30, " " * 50, "ế\u0301e\u0323\u0302", "a\u0328\u0304", "한", "İİİİ", "ΐ", "K"]


@pytest.mark.parametrize("name", BOUNDED)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(PIECES)), max_size=20).map("".join))
def test_no_text_has_fewer_tokens(name: str, text: str) -> None:
    longest = most_characters_a_token(BOUNDED[name])
    assert longest is not None
    assert len(BOUNDED[name].encode(text, add_special_tokens=False).ids) * longest >= len(text)


def test_it_is_the_longest_entry() -> None:
    assert most_characters_a_token(demo()) == max(map(len, CONTENT["model"]["vocab"]))
    assert most_characters_a_token(unknown_by_one()) == 2


def test_entries_whose_ids_have_gaps_count() -> None:
    model = tokenizers.models.BPE(vocab={"?": 0, "a": 1, "aa": 9, "aaaa": 7}, merges=[("a", "a"), ("aa", "aa")])
    model.unk_token = "?"
    assert most_characters_a_token(tokenizers.Tokenizer(model)) == 4


def test_added_tokens_count() -> None:
    made = unknown_by_one()
    made.add_special_tokens(["<a very long one>"])
    assert most_characters_a_token(made) == 17


SPLIT = {"type": "Split", "pattern": {"String": " "}, "invert": False}
LOSING = {
    "spaces are removed": demo(pre_tokenizer=SPLIT | {"behavior": "Removed"}),
    "words are divided at spaces": demo(pre_tokenizer={"type": "Whitespace"}),
    "a step among others removes": demo(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [CONTENT["pre_tokenizer"], {"type": "WhitespaceSplit"}]}
    ),
    "the ends are stripped": demo(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
    "accents are stripped": demo(normalizer={"type": "StripAccents"}),
    "a run becomes one": demo(normalizer={"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
    "something is deleted": demo(normalizer={"type": "Replace", "pattern": {"String": "x"}, "content": ""}),
    "spaces beside a token go": demo(added_tokens=[{**CONTENT["added_tokens"][0], "rstrip": True}]),
    "unknown characters are one": bpe(["?", "a"], [], unk_token="?", fuse_unk=True),
    "unknown characters are dropped": bpe(["a"], []),
    "bytes are missing": bpe(["a", *BYTES[:-1]], [], byte_fallback=True),
    "words may be unknown": tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?")),
}


@pytest.mark.parametrize("why", LOSING)
def test_where_there_may_be_none_none_is_told(why: str) -> None:
    assert most_characters_a_token(LOSING[why]) is None


def test_a_long_replacement_by_a_short_one() -> None:
    made = demo(normalizer={"type": "Replace", "pattern": {"String": "....."}, "content": "…!"})
    assert most_characters_a_token(made) == 3 * max(map(len, CONTENT["model"]["vocab"]))
