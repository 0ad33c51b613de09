"""The small files beside tokenizer.json: which special tokens there are, and the sources of the chat templates.

The forms, and which file wins, are those of `transformers` (tokenization_utils_base.py): a tokenizer_config.json with
`added_tokens_decoder`, or an older one that special_tokens_map.json completes; templates in files of their own, which
replace those within the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import tokenizers

from penstock.errors import TokenizerError
from penstock.strict_json import GET_AGAIN, open_regular, read_json_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COMMON_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerConfig:
    """What the small files of a model directory say. Raises FormatError or TokenizerError where they are malformed."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any] | None = None) -> None:
        """`settings`: the content of tokenizer_config.json, where that is no file."""
        self._dir = model_dir
        if settings is not None:
            self._settings = dict(settings)
            return
        path, older = model_dir / "tokenizer_config.json", model_dir / "special_tokens_map.json"
        self._settings = read_json_object(path) if path.exists() else {}
        if "added_tokens_decoder" not in self._settings and older.exists():
            self._settings.update(read_json_object(older))

    def roles(self) -> dict[str, tokenizers.AddedToken]:
        """Special tokens by role: the common roles first, then those of the model's own, like "image_token"."""
        own = {key: value for key, value in self._settings.items() if key.endswith("_token") and value is not None}
        # Other values are settings, like add_bos_token.
        tokens = {key: value for key, value in own.items() if key in COMMON_ROLES or isinstance(value, (str, dict))}
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            tokens.update(self._object(key) if isinstance(self._settings.get(key), dict) else {})
        order = dict.fromkeys([*COMMON_ROLES, *tokens])
        return {role: self._token(role, tokens[role], special=True) for role in order if role in tokens}

    def extra_tokens(self) -> list[tokenizers.AddedToken]:
        """Special tokens without a role."""
        key = "extra_special_tokens" if self._settings.get("extra_special_tokens") else "additional_special_tokens"
        values = self._settings.get(key) or []
        if isinstance(values, dict):  # by role, see above
            return []
        if not isinstance(values, list):
            self._fail(key, "a list")
        return [self._token(key, value, special=True) for value in values]

    def added_tokens(self) -> list[tokenizers.AddedToken]:
        """All tokens that the config adds to the vocabulary, in the order of their ids."""
        entries = self._object("added_tokens_decoder")
        if not all(key.isdecimal() for key in entries):
            self._fail("added_tokens_decoder", "an object with ids as keys")
        return [self._token("added_tokens_decoder", entries[key], special=False) for key in sorted(entries, key=int)]

    def template_sources(self) -> dict[str, str]:
        """Sources of the chat templates by name; the unnamed one is "default"."""
        files = {path.stem: path for path in sorted((self._dir / "additional_chat_templates").glob("*.jinja"))}
        if (self._dir / "chat_template.jinja").exists():
            files["default"] = self._dir / "chat_template.jinja"
        if files:
            return {name: _read_text(path) for name, path in files.items()}
        source, processor = self._settings.get("chat_template"), self._dir / "chat_template.json"
        if source is None and processor.exists():  # where multimodal models keep it
            source = read_json_object(processor).get("chat_template")
        return self._named(source)

    def _named(self, source: object) -> dict[str, str]:
        """The forms a template takes in JSON: nothing, a text, or a list of {"name": ..., "template": ...}."""
        if source is None:
            return {}
        if isinstance(source, str):
            return {"default": source}
        entries = source if isinstance(source, list) else [None]
        sources: dict[str, str] = {}
        for entry in entries:
            name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(text, str):
                self._fail("chat_template", "a text or a list of named texts")
            sources[name] = text
        return sources

    def _object(self, key: str) -> Mapping[str, Any]:
        value = self._settings.get(key) or {}
        if not isinstance(value, dict):
            self._fail(key, "an object")
        return value

    def _token(self, key: str, value: object, special: bool) -> tokenizers.AddedToken:
        """A token out of its text, or out of an object with its text and flags."""
        fields = value if isinstance(value, dict) else {"content": value}
        flags = {flag: fields[flag] for flag in FLAGS if flag in fields}
        content = fields.get("content")
        if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in flags.values()):
            self._fail(key, "a token", value)
        return tokenizers.AddedToken(content, **{**flags, "special": special or flags.get("special", False)})

    def _fail(self, key: str, expected: str, value: object = None) -> NoReturn:
        value = self._settings.get(key) if value is None else value
        raise TokenizerError(
            f"{self._dir / 'tokenizer_config.json'}: {key} is {shown(value)}, not {expected}", GET_AGAIN
        )


def _read_text(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read()
    try:
        # Line ends as Python's text mode reads them.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 (at its byte {error.start})", GET_AGAIN) from error
