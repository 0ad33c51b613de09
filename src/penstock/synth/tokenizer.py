"""A made-up tokenizer of full size: byte-level BPE whose cost is that of a real one, for checkpoints of random weights.

The entries are no language's, but they divide text as real ones do: letters by threes and fours with or without a
leading space, numbers of up to three digits, characters beyond ASCII. As in Llama 3's tokenizer.json (converted from a
list of ranked byte strings), the merges of an entry are all its divisions into two earlier entries, by rank.

Byte-level BPE writes each byte as a visible character (GPT-2's table); the file format is that of the `tokenizers`
library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.architectures.config import ModelConfig
from penstock.errors import UsageError

_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by their frequency in English, so that early merges are the useful ones
_CHARACTERS = (range(0xA0, 0x800), range(0x3041, 0x3100), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4))

# Words, numbers by threes, punctuation, and spaces short of the last one before a word.
_SPLIT = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_LLAMA3_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_SMOLLM2_NAMED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
)


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens with the ids `first_id`, `first_id` + 1, ..., and how a conversation uses them."""

    names: tuple[str, ...]
    first_id: int
    bos: str
    eos: str
    begins_text: bool
    """Whether encoding a text puts `bos` before it."""
    template: str


def special_tokens(config: ModelConfig) -> SpecialTokens:
    """Llama 3's special tokens, from `bos_token_id` to the vocabulary's end; SmolLM2's, from 0, for low ids."""
    first = config.bos_token_id or 0
    if first < len(_SMOLLM2_NAMED):
        return SpecialTokens(_SMOLLM2_NAMED, 0, "<|im_start|>", "<|im_end|>", False, _CHATML_TEMPLATE)
    reserved = range(3, 3 + config.vocab_size - first - len(_LLAMA3_NAMED))
    names = _LLAMA3_NAMED + tuple(f"<|reserved_special_token_{number}|>" for number in reserved)
    return SpecialTokens(names, first, "<|begin_of_text|>", "<|eot_id|>", True, _LLAMA3_TEMPLATE)


def first_unused_id(config: ModelConfig) -> int:
    """Where the reserved tokens at the end of Llama 3's vocabulary begin; `vocab_size` where there are none."""
    special = special_tokens(config)
    return special.first_id + len(_LLAMA3_NAMED) if special.first_id else config.vocab_size


def tokenizer_json(config: ModelConfig) -> dict[str, Any]:
    """The content of a tokenizer.json with `vocab_size` entries, special tokens included.

    Raises UsageError where the vocabulary has no room for the 256 bytes and the special tokens.
    """
    special = special_tokens(config)
    n_plain = config.vocab_size - len(special.names)
    if n_plain < 256 or special.first_id not in (0, n_plain):
        problem = f"a vocabulary of {config.vocab_size} entries has no room for a byte-level tokenizer"
        raise UsageError(problem, "Leave the tokenizer out (--no-tokenizer).")
    entries = list(islice(_iter_entries(), n_plain))
    first = 0 if special.first_id else len(special.names)
    vocab = {} if special.first_id else {name: index for index, name in enumerate(special.names)}
    vocab |= {_written(entry): index for index, entry in enumerate(entries, first)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, **token} for token_id, token in _added_tokens(special).items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                _byte_level(),
            ],
        },
        "post_processor": _post_processor(special),
        "decoder": _byte_level(),
        "model": _bpe(vocab),
    }


def tokenizer_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of the tokenizer_config.json beside it."""
    special = special_tokens(config)
    return {
        "added_tokens_decoder": {str(token_id): token for token_id, token in _added_tokens(special).items()},
        "bos_token": special.bos,
        "chat_template": special.template,
        "clean_up_tokenization_spaces": False,
        "eos_token": special.eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _bpe(vocab: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": vocab,
        "merges": list(_iter_merges(vocab)),
    }


def _added_tokens(special: SpecialTokens) -> dict[int, dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {token_id: {"content": name, **flags} for token_id, name in enumerate(special.names, special.first_id)}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _post_processor(special: SpecialTokens) -> dict[str, Any]:
    if not special.begins_text:
        return _byte_level()
    bos = {"SpecialToken": {"id": special.bos, "type_id": 0}}
    bos_id = special.first_id + special.names.index(special.bos)
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {special.bos: {"id": special.bos, "ids": [bos_id], "tokens": [special.bos]}},
    }


def _byte_symbols() -> list[str]:
    """The visible character for each byte: itself where it has one in Latin-1, else U+0100 and up."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]


_SYMBOLS = _byte_symbols()


def _written(entry: bytes) -> str:
    return "".join(_SYMBOLS[byte] for byte in entry)


def _iter_merges(vocab: dict[str, int]) -> Iterator[str]:
    for entry in vocab:
        for cut in range(1, len(entry)):
            if entry[:cut] in vocab and entry[cut:] in vocab:
                yield f"{entry[:cut]} {entry[cut:]}"


def _iter_entries() -> Iterator[bytes]:
    """About 900,000 distinct byte strings by rank: the single bytes, then each a concatenation of two earlier ones."""
    yield from sorted((bytes([byte]) for byte in range(256)), key=_written)
    yield from (b" " * length for length in range(2, 65))
    yield from (b"\n" * length for length in range(2, 9))
    yield from (f"{number:0{digits}}".encode() for digits in (2, 3) for number in range(10**digits))
    yield from _iter_words(range(1, 4), str)
    yield from _iter_words(range(1, 4), str.capitalize)
    yield from _iter_characters()
    yield from _iter_words(range(4, 5), str)


def _iter_words(lengths: range, change: Callable[[str], str]) -> Iterator[bytes]:
    """All strings of letters of these lengths, frequent letters first, each alone and after a space."""
    for length in lengths:
        for total in range(length * len(_LETTERS)):
            for word in _letters(length, total):
                if length > 1:
                    yield change(word).encode()
                yield b" " + change(word).encode()


def _letters(length: int, total: int) -> Iterator[str]:
    """All strings of that length whose letters' ranks sum to `total`."""
    if length == 1:
        yield from _LETTERS[total : total + 1]
        return
    for rank, letter in enumerate(_LETTERS[: total + 1]):
        for rest in _letters(length - 1, total - rank):
            yield letter + rest


def _iter_characters() -> Iterator[bytes]:
    """Characters of other scripts; those of three bytes after their first two, which many share."""
    seen = set()
    for character in (chr(code) for codes in _CHARACTERS for code in codes):
        encoded = character.encode()
        if len(encoded) == 3 and encoded[:2] not in seen:
            seen.add(encoded[:2])
            yield encoded[:2]
        yield encoded
