"""Filling in the middle: what stands before and after a gap, as models that were trained for it see it.

Such a model has tokens that say where the text before the gap begins, where that after it does, and where its answer
does. What stands around the gap is plain text: a special token that is spelled out in it is the characters of its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from penstock.errors import ContextError, TokenizerError, UsageError

if TYPE_CHECKING:
    from penstock.text.tokenizer import Tokenizer

_MARK = "\u263a"
"""Stands before a text that a tokenizer would put a space before, and is taken off again."""
_SPACE = "\u2581"
"""How the vocabularies of such tokenizers write a space."""


@dataclass(frozen=True, slots=True)
class Convention:
    """Tokens as a vocabulary writes them. The text before the gap comes first, but where `suffix_first`."""

    prefix: str
    suffix: str
    middle: str | None
    """None: what stands last is followed by the answer at once."""
    ends: tuple[str, ...]
    """Besides these three and the model's own end: where an answer ends, as far as the vocabulary has them."""
    suffix_first: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.prefix, self.suffix, *([] if self.middle is None else [self.middle]))


CONVENTIONS = (
    Convention(  # Qwen2.5-Coder and Qwen3-Coder, CodeGemma, Granite 4
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        (
            "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>", "<|end_of_text|>",
            "<|file_separator|>", "<|filename|>", "<|reponame|>",
        ),
    ),
    Convention(  # StarCoder, Granite 3
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        (
            "<fim_pad>", "<repo_name>", "<file_sep>", "<|endoftext|>", "<|end_of_text|>", "<filename>", "<reponame>",
        ),
    ),
    Convention("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<｜end▁of▁sentence｜>", "<|EOT|>")),  # noqa: RUF001 (DeepSeek-Coder)
    Convention("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>", "</s>")),  # Code Llama
    Convention("[PREFIX]", "[SUFFIX]", None, ("</s>",), suffix_first=True),  # Codestral
)  # fmt: skip


class Infilling:
    """How prompts for a gap are made for one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises TokenizerError where its vocabulary has tokens of no convention."""
        self._tokenizer = tokenizer
        self._convention = _convention_of(tokenizer)
        self.ends = frozenset(self._ids((*self._convention.marks, *self._convention.ends)))
        """Tokens that end an answer, besides the model's own end."""
        control = self.ends | tokenizer.special_ids
        names = sorted(name for name in map(tokenizer.token, control) if name and len(name) > 1)
        self._spelled_out = re.compile(f"(?={'|'.join(map(re.escape, names))})")
        unknown = tokenizer.token_id(tokenizer.special_tokens.get("unk_token", ""))
        self._never = control - {unknown}
        """What no plain text becomes, unless a normalizer makes it of another spelling."""
        self._begin, first = _begin(tokenizer)
        self._adds_space = (tokenizer.token(first) or "").startswith(_SPACE)

    def prompt(self, prefix: str, suffix: str, *, most_tokens: int | None = None) -> list[int]:
        """Token ids after which the model writes what belongs between the two. Raises as `Tokenizer.encode` does."""
        self._tokenizer.check_length(len(prefix) + len(suffix), most_tokens)
        how = self._convention
        before = [*self._ids([how.prefix]), *self._plain(prefix, most_tokens)]
        after = [*self._ids([how.suffix]), *self._plain(suffix, most_tokens, within=True)]
        first, then = (after, before) if how.suffix_first else (before, after)
        return [*self._begin, *first, *then, *self._ids(how.marks[2:])]

    def _ids(self, names: tuple[str, ...] | list[str]) -> list[int]:
        return [token for token in map(self._tokenizer.token_id, names) if token is not None]

    def _plain(self, text: str, most_tokens: int | None, *, within: bool = False) -> list[int]:
        """A text without special tokens; `within`: another stands before it."""
        cuts = [0, *(found.start() + 1 for found in self._spelled_out.finditer(text)), len(text)]
        if most_tokens is not None and len(cuts) > most_tokens + 2:  # each of these parts is a token at least
            raise ContextError(
                f"A text around the gap has {len(cuts) - 2} tokens at least; there is room for {most_tokens}.",
                "Shorten it, or raise --context (up to what the model was trained for).",
            )
        ids: list[int] = []
        for begin, end in pairwise(cuts):
            ids += self._encode(text[begin:end], within or begin > 0)
        if not self._never.isdisjoint(ids):
            raise UsageError("A text around the gap has a special token in it.", "Leave it out.")
        return ids

    def _encode(self, text: str, within: bool) -> list[int]:
        if not (within and self._adds_space):
            return self._tokenizer.encode(text, add_special_tokens=False)
        marked = self._tokenizer.encode(_MARK + text, add_special_tokens=False)
        return marked[len(self._tokenizer.encode(_MARK, add_special_tokens=False)) :]


def _convention_of(tokenizer: Tokenizer) -> Convention:
    for convention in CONVENTIONS:
        if all(tokenizer.token_id(name) is not None for name in convention.marks):
            return convention
    raise TokenizerError(
        "This model cannot fill in a middle: its tokenizer has no tokens for that, such as <|fim_prefix|>.",
        "Leave the suffix out, or take a model that was trained for it, such as Qwen2.5-Coder.",
    )


def _begin(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The special tokens that the tokenizer puts before a text, and the first token of one."""
    whole, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    places = range(len(whole) - len(plain) + 1)
    return whole[: next((place for place in places if whole[place : place + len(plain)] == plain), 0)], plain[0]
