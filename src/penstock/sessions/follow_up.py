"""Prompts that go on from tokens that are there already, so that their keys and values serve again."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.text.tokenizer import Tokenizer

_CHARACTER = 4
"""Tokens that one character may be spread over, at most."""


def extended(tokenizer: Tokenizer, held: Sequence[int], text: str, most_tokens: int | None = None) -> list[int]:
    """Token ids of `text`, special tokens spelled out in it, that begin with as many of `held` as spell its beginning.

    A model draws tokens that encoding their text would not give, so the text decides what can stay, and only the rest
    of it is encoded. Where that would not spell `text`, as with tokenizers that put a space first, all of it is.
    Raises as `Tokenizer.encode` does.
    """
    kept = list(held[: _fitting(tokenizer, held, text)])
    rest = text[len(_text(tokenizer, kept)) :]
    tokens = kept + tokenizer.encode(rest, add_special_tokens=False, most_tokens=most_tokens)
    if _text(tokenizer, tokens) == text:
        return tokens
    return tokenizer.encode(text, add_special_tokens=False, most_tokens=most_tokens)


def appended(tokenizer: Tokenizer, held: Sequence[int], text: str, most_tokens: int | None = None) -> list[int]:
    """Token ids of what `held` spells and `text` behind it; without `held`, as a text by itself is encoded."""
    if not held:
        return tokenizer.encode(text, most_tokens=most_tokens)
    return extended(tokenizer, held, _text(tokenizer, held) + text, most_tokens)


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """How many tokens, or characters, two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _fitting(tokenizer: Tokenizer, held: Sequence[int], text: str) -> int:
    """How many of the first of `held` spell the beginning of `text`."""
    spelled = _text(tokenizer, held)
    if text.startswith(spelled):
        return len(held)
    common = common_length(spelled, text)
    count = bisect_right(range(len(held)), common, key=lambda n: len(_text(tokenizer, held[: n + 1])))
    for n in range(count, max(0, count - _CHARACTER), -1):  # some may end amid a character
        if text.startswith(_text(tokenizer, held[:n])):
            return n
    return 0


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False)
