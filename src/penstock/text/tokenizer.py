"""Text to token ids and back, as the files of a checkpoint say.

tokenizer.json holds the whole algorithm, and the `tokenizers` library runs it as it stands, the special tokens that its
post-processor puts around a text included. (`add_bos_token` and `add_eos_token` of tokenizer_config.json do not count
beside a tokenizer.json; in `transformers` they do not either.)
"""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from penstock.errors import (
    ChatTemplateError,
    CheckpointWarning,
    ContextError,
    FormatError,
    TokenizerError,
    UnsupportedError,
    UsageError,
)
from penstock.gguf.model import gguf_files
from penstock.gguf.reader import read_gguf
from penstock.gguf.tokenizer import has_tokenizer, tokenizer_config_json, tokenizer_json
from penstock.strict_json import GET_AGAIN, LFS_POINTER, fail_lfs_pointer, listed, open_regular, shown
from penstock.text.spelling import most_characters_a_token
from penstock.text.tokenizer_config import TokenizerConfig

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from penstock.text.chat_template import ChatTemplate

_OTHER_FORMS = ("tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt")

CACHED_WORDS = 1000
"""Words whose tokens the library remembers. With up to 256 characters each they take 12 MB; its own number, 10,000, is
too many for a ceiling."""
SPECIAL_BYTES = 3
"""A special token, however long, takes no more to find than so many bytes of other text take to divide."""
WORTH_COUNTING = 1 << 14
"""Bytes of a text whose special tokens are counted."""


class Tokenizer:
    """A checkpoint's tokenizer and chat templates. Threads may share it."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        templates: Mapping[str, str] | None = None,
        where: str = "This tokenizer",
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Use `Tokenizer.open`. `templates`: sources by name; `where`: what error messages call the model."""
        backend.no_truncation()
        backend.no_padding()
        if hasattr(backend.model, "_resize_cache"):  # since 0.21
            backend.model._resize_cache(CACHED_WORDS)
        self.special_tokens = dict(special_tokens or {})
        """The tokens' texts by role: "bos_token", "eos_token", ..., and roles of the model's own."""
        self.special_ids = frozenset(key for key, token in backend.get_added_tokens_decoder().items() if token.special)
        """Ids of the tokens that `decode` leaves out."""
        self.room: Callable[[int], AbstractContextManager[object]] = nullcontext
        """Makes room for a text of so many bytes while it becomes tokens, or raises MemoryCeilingError; a special token
        that is spelled out in it counts as SPECIAL_BYTES."""
        self._backend = backend
        self._sources = dict(templates or {})
        self._templates: dict[str, ChatTemplate] = {}
        self._where = where
        self._now = now

    @classmethod
    def open(cls, model_dir: str | os.PathLike[str]) -> Tokenizer | None:
        """The tokenizer of a model directory or of a GGUF file, or None where there is none at all.

        None, too, with a CheckpointWarning, where a GGUF file has one of a kind that is not known. Raises
        TokenizerError where one of its files is malformed, or where there is a tokenizer in another form only.
        """
        model_dir = Path(model_dir)
        path = model_dir / "tokenizer.json"
        try:
            if (files := gguf_files(model_dir)) is not None:
                return cls._of_gguf(files[0])
            if not path.exists():
                _refuse_other_forms(model_dir)
                return None
            backend = _load(path)
            config = TokenizerConfig(model_dir)
            return cls(backend, _add_tokens(backend, config), config.template_sources(), str(model_dir))
        except FormatError as error:
            raise TokenizerError(error.problem, error.remedy) from error

    @classmethod
    def _of_gguf(cls, path: Path) -> Tokenizer | None:
        metadata = read_gguf(path, arrays=True).metadata
        if not has_tokenizer(metadata):
            return None
        try:
            content = tokenizer_json(metadata, str(path))
        except UnsupportedError as error:
            message = f"{error.problem}, so that token ids work and text does not. {error.remedy}"
            warnings.warn(message, CheckpointWarning, stacklevel=4)
            return None
        config = TokenizerConfig(path, tokenizer_config_json(metadata, str(path)))
        del metadata  # of tens of megabytes
        backend = _checked(lambda: tokenizers.Tokenizer.from_str(json.dumps(content)), path)
        return cls(backend, _add_tokens(backend, config), config.template_sources(), str(path))

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included. The model's vocabulary may be larger, and rarely is smaller."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """The content of a tokenizer.json that says all of it."""
        return self._backend.to_str()

    def has_same_tokens(self, other: Tokenizer, below: int) -> bool:
        """Whether every id below that stands for the same token in both."""
        own, others = (one._backend.get_vocab(with_added_tokens=True).items() for one in (self, other))
        return {token for token in own if token[1] < below} == {token for token in others if token[1] < below}

    def token_id(self, token: str) -> int | None:
        """The id of the token that is written exactly so, like "<|eot_id|>"."""
        return self._backend.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it, or None for an id that the vocabulary does not have."""
        return self._backend.id_to_token(token_id)

    def encode(self, text: str, *, add_special_tokens: bool = True, most_tokens: int | None = None) -> list[int]:
        """Token ids of a text, by default within the special tokens (mostly BOS) that tokenizer.json puts around it.

        Special tokens spelled out in the text count as such. Raises UsageError for what is not Unicode text,
        MemoryCeilingError where there is no room to divide it, and ContextError where it is so long that it has more
        than `most_tokens` in any case.
        """
        if not isinstance(text, str):
            raise UsageError(f"a {type(text).__name__} cannot be encoded into tokens", "Give a string.")
        self.check_length(len(text), most_tokens)
        with self.room(self._bytes_to_divide(text)):
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def check_length(self, characters: int, most_tokens: int | None) -> None:
        """Raise ContextError where every text of so many characters has more than `most_tokens` tokens."""
        if most_tokens is None or characters <= most_tokens or self._longest is None:
            return
        least = -(-characters // self._longest)
        if least > most_tokens:
            raise ContextError(
                f"A prompt of {characters:,} characters has {least} tokens at least; there is room for {most_tokens}.",
                "Shorten it, or raise --context (up to what the model was trained for).",
            )

    def _bytes_to_divide(self, text: str) -> int:
        """As `room` counts them: what a template puts around short messages would count for more than these, else."""
        nbytes = _utf8_bytes(text)
        if nbytes <= WORTH_COUNTING:
            return nbytes
        return nbytes - sum(text.count(token) * (len(token) - SPECIAL_BYTES) for token in self._spelled_out)

    @cached_property
    def _spelled_out(self) -> list[str]:
        """Tokens that are found wherever a text has them, none of them a part of another."""
        added = self._backend.get_added_tokens_decoder().values()
        plain = [token.content for token in added if not (token.normalized or token.single_word)]
        long = {content for content in plain if content.isascii() and len(content) > SPECIAL_BYTES}
        return [one for one in long if not any(one in token.content for token in added if token.content != one)]

    @cached_property
    def _longest(self) -> int | None:
        """The most characters that a token stands for, where that is known."""
        return most_characters_a_token(self._backend)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, its spaces left as they are.

        Bytes that are not UTF-8 become U+FFFD; ids that the vocabulary does not have add nothing. Raises UsageError
        for what is not an id.
        """
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (TypeError, OverflowError) as error:
            raise UsageError(f"these are not token ids: {error}", "Give integers from 0 to 2**32 - 1.") from error

    @property
    def has_chat_template(self) -> bool:
        return bool(self._sources)

    def chat_template(self, name: str | None = None, *, for_tools: bool = False) -> ChatTemplate:
        """The template of that name; without a name, "tool_use" for tools where there is one, else "default".

        Raises ChatTemplateError where there is none, none of that name, or where it is malformed.
        """
        name = name or ("tool_use" if for_tools and "tool_use" in self._sources else "default")
        if name not in self._templates:
            self._templates[name] = self._compile(name)
        return self._templates[name]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        most_tokens: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready for the answer. `template` is a name; `options` go to the rendering.

        The template itself writes the special tokens, so none are added. Raises ChatTemplateError, and as `encode`.
        """
        chosen = self.chat_template(template, for_tools=tools is not None)
        text = chosen.render(messages, tools=tools, check_length=self.length_check(most_tokens), **options)
        return self.encode(text, add_special_tokens=False, most_tokens=most_tokens)

    def length_check(self, most_tokens: int | None) -> Callable[[int], None]:
        """`check_length` of a text's characters alone."""
        return lambda characters: self.check_length(characters, most_tokens)

    def _compile(self, name: str) -> ChatTemplate:
        from penstock.text.chat_template import ChatTemplate  # Jinja takes 11 MB that plain completion can do without

        if not self._sources:
            raise ChatTemplateError(
                f"{self._where} has no chat template, so a conversation cannot become a prompt",
                "Complete plain text instead: --raw on the command line, generate() in Python.",
            )
        if name not in self._sources:
            raise ChatTemplateError(
                f"{self._where} has no chat template named {shown(name)}",
                f"Choose one of its templates: {listed(sorted(self._sources))}.",
            )
        label = "the chat template" if name == "default" else f"the chat template {shown(name)}"
        return ChatTemplate(self._sources[name], self.special_tokens, f"{label} of {self._where}", now=self._now)


def _refuse_other_forms(model_dir: Path) -> None:
    for name in _OTHER_FORMS:
        if (model_dir / name).exists():
            raise TokenizerError(
                f"{model_dir} has a {name} but no tokenizer.json, the only form of a tokenizer that is read here",
                "Put the model's tokenizer.json there; AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of "
                "transformers makes one.",
            )


def _load(path: Path) -> tokenizers.Tokenizer:
    with open_regular(path) as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            fail_lfs_pointer(path)
    # The library reads the file itself: neither its text nor its JSON becomes a Python object.
    return _checked(lambda: tokenizers.Tokenizer.from_file(str(path)), path)


def _checked(load: Callable[[], tokenizers.Tokenizer], path: Path) -> tokenizers.Tokenizer:
    """What `load` gives. Raises TokenizerError where it gives none."""
    try:
        backend = load()
        backend.encode("a")  # some faults show only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exceptions, and panics, which are not even that
        raise TokenizerError(f"{path} is not a tokenizer: {' '.join(str(error).split())}", GET_AGAIN) from error
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> dict[str, str]:
    """Make the backend know the special tokens of the config; returns their texts by role."""
    roles = config.roles()
    texts = {role: token.content for role, token in roles.items()}
    added = config.added_tokens()
    for token in added:
        token.special = token.special or token.content in texts.values()
    known = {token.content for token in [*backend.get_added_tokens_decoder().values(), *added]}
    missing = [token for token in [*roles.values(), *config.extra_tokens()] if token.content not in known]
    backend.add_tokens(added + missing)
    return texts


def _utf8_bytes(text: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        problem = f"a text with an unpaired surrogate (its character {error.start}) cannot be encoded into tokens"
        raise UsageError(problem, "Give a string of Unicode text.") from error
