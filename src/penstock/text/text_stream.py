"""Token ids become text as they come, and the text ends at a stop string.

Decoding is not additive: characters span tokens, a byte sequence becomes text or U+FFFD only once it is complete, and
some decoders strip a space from the very beginning. So tokens are decoded behind a few of their predecessors, and what
could still change is held back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from penstock.text.tokenizer import Tokenizer

CONTEXT = 3  # tokens; an unfinished character of UTF-8 has at most so many bytes, and a token at least one
REPLACEMENT = "\ufffd"


class TextStream:
    """Incremental decoding, special tokens left out.

    All pieces together are `tokenizer.decode` of all ids, whatever the ids, for byte-level decoders and for those that
    treat tokens one by one, join them and strip the beginning (SentencePiece style, with or without byte fallback).
    A piece never ends within a character. The work for a token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        """`shown`: special tokens that are not left out."""
        self._tokenizer = tokenizer
        self._shown = frozenset(shown)
        self._ids: list[int] = []  # the context, and behind it what has not been decoded for good
        self._told = 0  # characters of the decoded context that have been handed out

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty where none is complete."""
        token = self._tokenizer.token(token_id)
        if token is not None and token_id in self._shown:
            return self._show(token)
        if token is None or token_id in self._tokenizer.special_ids:
            return ""  # decode leaves it out as well
        self._ids.append(token_id)
        if _is_byte(token):
            return ""
        text = self._tokenizer.decode(self._ids)
        # One U+FFFD at the end may be the beginning of a character, which is never more than one.
        held = text.endswith(REPLACEMENT)
        piece = text[self._told : len(text) - held]
        self._told += len(piece)
        self._shorten(held)
        return piece

    def _show(self, token: str) -> str:
        """A special token as it is written; what follows begins anew."""
        text = self.finish() + token
        self._ids, self._told = [], 0
        return text

    def finish(self) -> str:
        """The rest: bytes that no token completed any more."""
        piece = self._tokenizer.decode(self._ids)[self._told :]
        self._told += len(piece)
        return piece

    def _shorten(self, held: bool) -> None:
        """Keep as context the last few tokens, if they decode to anything.

        They suffice. Byte-level: what a further byte means depends on the unfinished character alone. SentencePiece
        style: behind a token that is not a byte nothing changes any more, save that spaces are stripped off the very
        beginning, and a context of which something is left has had that.
        """
        context = self._ids[-CONTEXT:]
        text = self._tokenizer.decode(context)
        if text:
            self._ids, self._told = context, len(text) - held


def _is_byte(token: str) -> bool:
    """Whether a byte-fallback decoder takes the token for a byte, like <0x0A>; a run of them is valid as a whole or not
    at all, so none of it is text before the run has ended."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


class StopStrings:
    """Cuts a stream of text before the stop string that is complete first (of two that end together, the longer).

    The result depends on the text alone, not on how it is split. Text that may become part of a stop string is held
    back. Raises UsageError for an empty stop string.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        if not all(self._stops):
            raise UsageError("a stop string is empty, and would end every text at once", "Leave it out.")
        self._held = ""
        self.met: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """The text that is certain now. Empty once a stop string has been met."""
        if self.met is not None:
            return ""
        text = self._held + text
        found = [(begin + len(stop), begin, stop) for stop in self._stops if (begin := text.find(stop)) >= 0]
        if found:
            _, end, self.met = min(found)
            self._held = ""
        else:
            end = len(text) - self._possible_prefix(text)
            self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back; the text has ended."""
        rest, self._held = self._held, ""
        return rest

    def _possible_prefix(self, text: str) -> int:
        """The length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
