"""How far an answer has come in its grammar, and which tokens may follow.

The automata are those of llguidance (https://github.com/guidance-ai/llguidance): an Earley parser over a lexer made of
derivatives of regular expressions, walked along a trie of the vocabulary. They depend on the tokens so far alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from llguidance import LLMatcher


class Matcher:
    """Of one answer."""

    def __init__(self, backend: LLMatcher, vocab_size: int) -> None:
        self._backend = backend
        self._vocab_size = vocab_size

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but the end."""
        return self._backend.is_stopped()

    def take(self, token: int) -> None:
        """A token that was drawn. Raises GrammarError where it may not follow, or the grammar is too much to follow."""
        if not self._backend.consume_token(token):
            raise self._failed()

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says, as its tokenizer would write them; mostly none."""
        return [] if self.ended else self._backend.compute_ff_tokens()

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether these may follow one another from here on."""
        return self._backend.validate_tokens(list(tokens)) == len(tokens)

    def forced_after(self, tokens: Sequence[int]) -> list[int]:
        """As `forced`, after these, which are allowed."""
        if not tokens or not self._backend.consume_tokens(list(tokens)):
            return []
        try:
            return self.forced()
        finally:
            self._backend.rollback(len(tokens))

    def mask_after(self, tokens: Sequence[int]) -> npt.NDArray[np.bool_]:
        """As `mask`, after these, which are allowed."""
        taken = [*tokens]
        if taken and not self._backend.consume_tokens(taken):
            raise self._failed()
        try:
            return self.mask()
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
