"""The tokenizer.json and tokenizer_config.json that a GGUF file's metadata stands for.

"gpt2" is byte-level BPE with its merges, and `tokenizer.ggml.pre` names how a text is divided before (divisions.py).
"llama" is the BPE of SentencePiece, with scores: what merges first is what makes the token with the highest score, so
the merges follow from them, as in `transformers` (convert_slow_tokenizer.py). Tokens that a user defined are found
before that, wherever a text has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

from penstock.errors import FormatError, UnsupportedError
from penstock.gguf.divisions import DIVISIONS
from penstock.strict_json import GET_AGAIN, listed, shown

if TYPE_CHECKING:
    from penstock.gguf.reader import Value

MOST_TOKEN_CHARACTERS = 4096
"""The ways to make a token of two are as many as it has characters."""
SPACE = "\u2581"
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_TEMPLATE = "tokenizer.chat_template"


class TokenType(IntEnum):
    """As llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def has_tokenizer(metadata: Mapping[str, Value]) -> bool:
    """Whether the file has one, of whatever kind."""
    return metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab")


def tokenizer_json(metadata: Mapping[str, Value], source: str) -> dict[str, Any]:
    """The content of a tokenizer.json; `metadata` has all arrays, `source` opens all messages.

    Raises UnsupportedError for kinds that Penstock does not know, FormatError for what cannot be.
    """
    vocabulary = _Vocabulary(metadata, source)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _byte_level(vocabulary)
    elif kind == "llama":
        parts = _sentencepiece(vocabulary)
    else:
        problem = f"{source}: tokenizer.ggml.model is {shown(kind)}"
        raise UnsupportedError(problem, "Penstock reads 'gpt2' and 'llama' tokenizers of GGUF files.")
    added = [_added_token(vocabulary, index) for index in vocabulary.added]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def tokenizer_config_json(metadata: Mapping[str, Value], source: str) -> dict[str, Any]:
    """The content of a tokenizer_config.json: special tokens by role, and the chat templates. Raises FormatError."""
    vocabulary = _Vocabulary(metadata, source)
    tokens = {role: vocabulary.special(key) for key, role in _ROLES.items()}
    config: dict[str, Any] = {role: token for role, token in tokens.items() if token is not None}
    templates = _templates(metadata, source)
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config


class _Vocabulary:
    """The tokens of a file, checked; those of a SentencePiece model are written as in its own vocabulary."""

    def __init__(self, metadata: Mapping[str, Value], source: str) -> None:
        self.metadata, self.source = metadata, source
        self.tokens: list[str] = self.strings("tokens")
        if not self.tokens:
            self.fail("tokens", "a list of tokens")
        self.types: Sequence[Any] = self.numbers("token_type") or [TokenType.NORMAL] * len(self.tokens)
        if any(len(token) > MOST_TOKEN_CHARACTERS for token in self.tokens):
            raise FormatError(f"{source}: a token has more than {MOST_TOKEN_CHARACTERS} characters", GET_AGAIN)
        if metadata.get("tokenizer.ggml.model") == "llama":
            # The converter writes spaces into those that a user defined, as a text has them.
            defined = (kind == TokenType.USER_DEFINED for kind in self.types)
            self.tokens = [t.replace(" ", SPACE) if own else t for t, own in zip(self.tokens, defined, strict=True)]

    @property
    def ids(self) -> dict[str, int]:
        """Of all tokens but those that fill up the vocabulary; of equal ones, the first."""
        ids: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not (self.types[index] == TokenType.UNUSED and token == f"[PAD{index}]"):
                ids.setdefault(token, index)
        return ids

    @property
    def added(self) -> list[int]:
        """The ids of tokens that are looked for in a text before it is divided: not of runs of spaces, which a
        SentencePiece model finds after it has replaced them."""
        kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
        special = {self.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _ROLES}
        found = (i for i, kind in enumerate(self.types) if kind in kinds or i in special)
        return [i for i in found if self.tokens[i].strip(SPACE)]

    def special(self, key: str) -> str | None:
        """The token of a role, where there is one."""
        index = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(self.tokens):
            self.fail(f"{key}_token_id", f"a token's id, below {len(self.tokens):,}")
        return self.tokens[index]

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def strings(self, key: str) -> list[str]:
        values = self.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.fail(key, "a list of strings")
        return values  # type: ignore[return-value]

    def numbers(self, key: str) -> list[float]:
        """One for each token, or none."""
        values = self.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
            self.fail(key, "a list of numbers")
        if values and len(values) != len(self.tokens):
            self.fail(key, f"a list of {len(self.tokens):,}, one for each token")
        return values  # type: ignore[return-value]

    def fail(self, key: str, expected: str) -> NoReturn:
        value = shown(self.metadata.get(f"tokenizer.ggml.{key}"))
        raise FormatError(f"{self.source}: tokenizer.ggml.{key} is {value}, not {expected}", GET_AGAIN)


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    division = DIVISIONS.get(name) if isinstance(name, str) else None
    if division is None:
        problem = f"{vocabulary.source}: tokenizer.ggml.pre is {shown(name)}, a way to divide texts that is not known"
        raise UnsupportedError(problem, f"Penstock knows {listed(sorted(DIVISIONS), 50)}.")
    merges = [merge.split(" ") for merge in vocabulary.strings("merges")]
    wrong = next((merge for merge in merges if len(merge) != 2), None)
    if wrong is not None:
        raise FormatError(f"{vocabulary.source}: the merge {shown(' '.join(wrong))} is not of two tokens", GET_AGAIN)
    return {
        "normalizer": division.normalizer,
        "pre_tokenizer": division.pre_tokenizer,
        "post_processor": _post_processor(vocabulary, add_bos=division.adds_bos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(vocabulary, merges, ignore_merges=division.ignores_merges),
    }


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    spaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    unspaced = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps: list[dict[str, Any]] = [unspaced, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: dict[str, Any] = spaced
    if vocabulary.flag("add_space_prefix", True):
        prepended = {"type": "Prepend", "prepend": SPACE}
        normalizer = {"type": "Sequence", "normalizers": [prepended, spaced]}
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.special("unknown")
    types = [index for index, kind in enumerate(vocabulary.types) if kind == TokenType.UNKNOWN]
    if unknown is None and types:
        unknown = vocabulary.tokens[types[0]]
    model = _model(vocabulary, _merges_by_score(vocabulary))
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary, add_bos=True),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {**model, "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _model(vocabulary: _Vocabulary, merges: list[list[str]], ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _merges_by_score(vocabulary: _Vocabulary) -> list[list[str]]:
    """All pairs of tokens that make a token, those with the highest score first; of equal ones, by their ids."""
    scores, pieces = vocabulary.numbers("scores"), {}
    if not scores:
        vocabulary.fail("scores", "a list of numbers, which a 'llama' tokenizer needs")
    for token, index in vocabulary.ids.items():
        if vocabulary.types[index] in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED):
            pieces[token] = index
    merges: list[tuple[float, int, int]] = []
    for token, index in pieces.items():
        cost = -float("inf") if vocabulary.types[index] == TokenType.USER_DEFINED else -scores[index]
        for at in range(1, len(token)):
            left = pieces.get(token[:at])
            if left is not None and (right := pieces.get(token[at:])) is not None:
                merges.append((cost, left, right))
    # Those of equal scores are mostly the ways to make one token.
    merges.sort()
    return [[vocabulary.tokens[left], vocabulary.tokens[right]] for _, left, right in merges]


def _post_processor(vocabulary: _Vocabulary, add_bos: bool) -> dict[str, Any]:
    ends = {"bos": vocabulary.flag("add_bos_token", add_bos), "eos": vocabulary.flag("add_eos_token", False)}
    tokens = {key: vocabulary.special(key) for key, wanted in ends.items() if wanted}
    known = {key: token for key, token in tokens.items() if token is not None}

    def sequence(name: str, number: int) -> list[dict[str, Any]]:
        texts = [{"Sequence": {"id": name, "type_id": number}}]
        around = {key: [{"SpecialToken": {"id": token, "type_id": number}}] for key, token in known.items()}
        return [*around.get("bos", []), *texts, *around.get("eos", [])]

    ids = {token: vocabulary.metadata[f"tokenizer.ggml.{key}_token_id"] for key, token in known.items()}
    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in ids.items()},
    }


def _added_token(vocabulary: _Vocabulary, index: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = vocabulary.types[index] != TokenType.USER_DEFINED
    return {"id": index, "content": vocabulary.tokens[index], **flags, "special": special}


def _templates(metadata: Mapping[str, Value], source: str) -> dict[str, str]:
    """The sources of the chat templates by name. Raises FormatError."""
    named = {
        "default" if key == _TEMPLATE else key.removeprefix(f"{_TEMPLATE}."): value
        for key, value in metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    for name, text in named.items():
        if not isinstance(text, str):
            raise FormatError(f"{source}: the chat template {shown(name)} is {shown(text)}, not a text", GET_AGAIN)
    return named  # type: ignore[return-value]
