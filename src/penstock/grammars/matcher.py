"""How far an answer has come in its grammar, and which tokens may follow.

The automata are those of llguidance (https://github.com/guidance-ai/llguidance): an Earley parser over a lexer made of
derivatives of regular expressions, walked along a trie of the vocabulary. They depend on the tokens so far alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from llguidance import LLMatcher


class Matcher:
    """Of one answer."""

    def __init__(self, backend: LLMatcher, vocab_size: int, stop_ids: Sequence[int] = ()) -> None:
        """`stop_ids`: tokens that end an answer."""
        self._backend = backend
        self._vocab_size = vocab_size
        self._stop_ids = list(stop_ids)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but the end."""
        if self._backend.is_stopped() or not self._backend.is_accepting():
            return self._backend.is_stopped()
        further = self.mask()
        further[self._stop_ids] = False
        return not further.any()

    def take(self, token: int) -> None:
        """A token that was drawn. Raises GrammarError where it may not follow, or the grammar is too much to follow."""
        if not self._backend.consume_token(token):
            raise self._failed()

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says, as its tokenizer would write them; mostly none."""
        if self._backend.is_stopped():
            return []
        tokens = self._backend.compute_ff_tokens()
        # Text that spells out a token of the tokenizer's own, like "<tool_call>", becomes that, which is no text.
        return tokens[: self._backend.validate_tokens(tokens)]

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether these may follow one another from here on."""
        return self._backend.validate_tokens(list(tokens)) == len(tokens)

    @contextmanager
    def after(self, tokens: Sequence[int]) -> Iterator[None]:
        """As far as if these, which are allowed, were taken, for as long as the context lasts. Raises GrammarError
        where the grammar is too much to follow."""
        taken = [*tokens]
        if taken and not self._backend.consume_tokens(taken):
            raise self._failed()
        try:
            yield
        finally:
            if taken:
                self._backend.rollback(len(taken))

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens may follow: bool [vocab_size], one of them at least. Raises GrammarError where the grammar is
        too much to follow."""
        words = np.zeros(-(-self._vocab_size // 32), np.uint32)
        self._backend.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        allowed = np.unpackbits(words.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._backend.is_error() or not allowed.any():
            raise self._failed()
        return allowed

    def _failed(self) -> GrammarError:
        reason = " ".join(self._backend.get_error().split())[:400] or "no token may follow"
        return GrammarError(
            f"The answer cannot follow its grammar any further: {reason}", "Ask for something simpler in form."
        )
