r"""How byte-level tokenizers divide a text before they merge, by the name that GGUF has for it.

The patterns are those of the tokenizer.json files that the names stand for, in the syntax of the `tokenizers` library;
src/llama-vocab.cpp of llama.cpp, where the names come from, cites most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Division:
    """Parts of a tokenizer.json, and what holds for all tokenizers of a kind."""

    pre_tokenizer: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None = None
    ignores_merges: bool = False
    """Whether a word that is a token becomes that one, whatever the merges make of it."""
    adds_bos: bool = False
    """Where the file does not say."""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _sequence(split, _byte_level(use_regex=False))


def _words(digits: str) -> dict[str, Any]:
    """As GPT-4 divides them, with so many digits together."""
    return _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    )


def _cased(contractions: str, digits: str) -> dict[str, Any]:
    """As GPT-4o divides them, where capitals begin."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{before}{_UPPER}*{_LOWER}+{contractions}|{before}{_UPPER}+{_LOWER}*{contractions}"
    return _split(rf"{words}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}")


_NFC = {"type": "NFC"}
_GPT2 = Division(_byte_level(use_regex=True))
_SINGLE_DIGITS = Division(_sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)))
_LLAMA3 = Division(_words("{1,3}"), ignores_merges=True, adds_bos=True)
_GPT4 = Division(_words("{1,3}"))
_QWEN2 = Division(_words(""), normalizer=_NFC)

DIVISIONS: Mapping[str, Division] = MappingProxyType(
    {
        "gpt-2": _GPT2,
        "olmo": _GPT2,
        "exaone4": _GPT2,
        **dict.fromkeys(("smollm", "starcoder", "refact", "exaone"), _SINGLE_DIGITS),
        **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
        **dict.fromkeys(("dbrx", "smaug-bpe"), _GPT4),
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "tekken": Division(_cased("", ""), ignores_merges=True, adds_bos=True),
        "gpt-4o": Division(_cased(f"{_CONTRACTIONS}?", "{1,3}")),
    }
)
