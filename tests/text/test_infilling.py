from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from helpers.infilling import DEMO, QWEN, with_tokens
from penstock.errors import ContextError, TokenizerError, UsageError
from penstock.text.infilling import CONVENTIONS, Convention, Infilling
from penstock.text.tokenizer import Tokenizer

BOS = 0
PREFIX, MIDDLE, SUFFIX, PAD = range(4092, 4096)


def opened(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.open(directory)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return opened(with_tokens(tmp_path_factory.mktemp("fim")))


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_gap_is_between_prefix_and_suffix(tokenizer: Tokenizer) -> None:
    before, after = plain(tokenizer, "def add(a, b):\n    "), plain(tokenizer, "\n\nprint(1)")
    made = Infilling(tokenizer).prompt("def add(a, b):\n    ", "\n\nprint(1)")
    assert made == [BOS, PREFIX, *before, SUFFIX, *after, MIDDLE]
    assert Infilling(tokenizer).prompt("", "") == [BOS, PREFIX, SUFFIX, MIDDLE]


def test_what_ends_the_middle(tokenizer: Tokenizer) -> None:
    assert Infilling(tokenizer).ends == {PREFIX, MIDDLE, SUFFIX, PAD, tokenizer.token_id("<|end_of_text|>")}


@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda one: one.prefix)
def test_conventions(tmp_path: Path, convention: Convention) -> None:
    names = (*convention.marks, convention.ends[0])
    tokenizer = opened(with_tokens(tmp_path, names, special=True))
    ids = {name: tokenizer.token_id(name) for name in names}
    before = [ids[convention.prefix], *plain(tokenizer, "one")]
    after = [ids[convention.suffix], *plain(tokenizer, "two")]
    expected = [*after, *before] if convention.suffix_first else [*before, *after]
    expected += [] if convention.middle is None else [ids[convention.middle]]
    infilling = Infilling(tokenizer)
    assert infilling.prompt("one", "two") == [BOS, *expected]
    assert set(ids.values()) <= infilling.ends


def test_a_model_without_such_tokens() -> None:
    with pytest.raises(TokenizerError, match="cannot fill in a middle") as caught:
        Infilling(opened(DEMO))
    assert "suffix" in caught.value.remedy


SPELLED = st.lists(st.sampled_from([*QWEN, "<|eot_id|>", "<|begin_of_text|>", "<|", "|>", "x", " ", "\n"]), max_size=6)


@given(SPELLED.map("".join), SPELLED.map("".join))
def test_special_tokens_that_are_spelled_out_are_text(tokenizer: Tokenizer, prefix: str, suffix: str) -> None:
    infilling = Infilling(tokenizer)
    begin, *made, end = infilling.prompt(prefix, suffix)
    gap = made.index(SUFFIX)
    assert (begin, made[0], end) == (BOS, PREFIX, MIDDLE)
    parts = made[1:gap], made[gap + 1 :]
    for text, part in zip((prefix, suffix), parts, strict=True):
        assert not {*part} & {PREFIX, MIDDLE, SUFFIX, PAD, *tokenizer.special_ids}
        assert tokenizer.decode(part) == text


def test_texts_are_only_as_long_as_there_is_room_for(tokenizer: Tokenizer) -> None:
    infilling = Infilling(tokenizer)
    with pytest.raises(ContextError, match="1,000,000 characters"):
        infilling.prompt("x" * 500_000, "x" * 500_000, most_tokens=100)
    with pytest.raises(ContextError, match="at least; there is room for 100"):
        infilling.prompt("<|eot_id|>" * 101, "", most_tokens=100)


def test_what_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError):
        Infilling(tokenizer).prompt("\ud800", "")


def spaced(names: list[str]) -> Tokenizer:
    """One that puts a space before every text, as Llama 2's does."""
    characters = ["<unk>", "\u2581", *"abc\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: number for number, token in enumerate(characters)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    backend.add_special_tokens(["<unk>", *(tokenizers.AddedToken(name, normalized=False) for name in names)])
    return Tokenizer(backend, {"unk_token": "<unk>"})


def test_no_space_comes_before_what_follows_the_gap() -> None:
    """As Code Llama was trained: texts begin with the space that its tokenizer adds, what follows the gap does not."""
    tokenizer = spaced(["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"])
    made = Infilling(tokenizer).prompt("a", "b c")
    names = [tokenizer.token(token) for token in made]
    assert names == ["\u2581<PRE>", "\u2581", "a", "\u2581<SUF>", "b", "\u2581", "c", "\u2581<MID>"]


def test_no_space_comes_into_a_token_that_is_spelled_out() -> None:
    tokenizer = spaced(["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "abc"])
    names = [tokenizer.token(token) for token in Infilling(tokenizer).prompt("abc", "cabc")]
    assert names == ["\u2581<PRE>", "\u2581", *"abc", "\u2581<SUF>", *"cabc", "\u2581<MID>"]
