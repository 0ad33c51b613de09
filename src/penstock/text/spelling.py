"""How much text a token can stand for: what cannot fit a context need not be tokenized to be refused.

An entry of a BPE vocabulary is written in at least as many characters as the text that it stands for has: of itself, of
bytes in GPT-2's visible characters or as <0x0A>, of an unknown character as <unk>. So a text of n characters needs
n / (characters of the longest entry) tokens at least, unless something on the way drops characters or makes fewer of
them. Only what is known not to does count here; the formats are those of the `tokenizers` library.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPOSED = 4
"""Characters that Unicode's normal forms make one of at most: the longest decomposition of a character that they
compose again."""
_NORMALIZERS = {"Prepend": 1, "Lowercase": 1, "ByteLevel": 1, "NFD": 1, "NFKD": 1, "NFC": _COMPOSED, "NFKC": _COMPOSED}
"""How many characters of a text such a step makes one of, at most."""
_KEEPING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts")
"""Pre-tokenizers that drop nothing; those with a behaviour do so where it is "Removed"."""
_WITH_BEHAVIOUR = ("Split", "Punctuation")


def most_characters_a_token(backend: tokenizers.Tokenizer) -> int | None:
    """The most characters of a text that one token stands for, or more; None where there may be no such number."""
    shrinking = _shrinking(backend)
    if shrinking is None or not (_drops_nothing(backend) and _keeps_unknown(backend)):
        return None
    return shrinking * max(map(len, _entries(backend)), default=1)


def _entries(backend: tokenizers.Tokenizer) -> Iterator[str]:
    """Every token as it is written, and as what it is looked for in a normalized text."""
    count, model = backend.get_vocab_size(with_added_tokens=False), backend.model
    entries = (model.id_to_token(index) for index in range(count))  # one by one: a dictionary of all takes megabytes
    found = 0
    for entry in entries:
        found += entry is not None
        yield entry or ""
    if found < count:  # ids with gaps, or shared ones
        yield from backend.get_vocab(with_added_tokens=False)
    for token in backend.get_added_tokens_decoder().values():
        yield token.content
        if token.normalized and backend.normalizer is not None:
            yield backend.normalizer.normalize_str(token.content)


def _shrinking(backend: tokenizers.Tokenizer) -> int | None:
    """How many characters of a text may become one before it is divided; None for any number."""
    product = 1
    for step in _steps(backend.normalizer, "normalizers"):
        kind = step.get("type")
        factor = _replacing(step) if kind == "Replace" else _NORMALIZERS.get(str(kind))
        if factor is None:
            return None
        product *= factor
    return product


def _replacing(step: dict[str, Any]) -> int | None:
    pattern, content = step.get("pattern"), step.get("content")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(replaced, str) or not isinstance(content, str) or not content:
        return None
    return max(1, -(-len(replaced) // len(content)))


def _drops_nothing(backend: tokenizers.Tokenizer) -> bool:
    """Whether dividing a text leaves all of it; tokens that strip what is around them do not."""
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return False
    return all(
        step.get("type") in _KEEPING or (step.get("type") in _WITH_BEHAVIOUR and step.get("behavior") != "Removed")
        for step in _steps(backend.pre_tokenizer, "pretokenizers")
    )


def _keeps_unknown(backend: tokenizers.Tokenizer) -> bool:
    """Whether every character becomes a token of its own at least: of the vocabulary, of bytes, or an unknown one."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if model.unk_token is not None:
        return not model.fuse_unk and model.token_to_id(model.unk_token) is not None
    if model.byte_fallback:
        return all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    spelled_in_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return spelled_in_bytes and all(model.token_to_id(symbol) is not None for symbol in alphabet)


def _steps(part: Any, of_sequence: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer as tokenizer.json has them; one without a type is not known."""
    if part is None:
        return []
    try:
        state = json.loads(part.__getstate__())
    except Exception:  # one that is written in Python
        return [{}]
    return list(_flat(state, of_sequence))


def _flat(state: Any, of_sequence: str) -> Iterator[dict[str, Any]]:
    if not isinstance(state, dict):
        yield {}
    elif state.get("type") == "Sequence":
        for step in state.get(of_sequence, [{}]):
            yield from _flat(step, of_sequence)
    else:
        yield state
