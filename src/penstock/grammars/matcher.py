"""How far an answer has come in its grammar, and which tokens may follow.

The automata are those of llguidance (https://github.com/guidance-ai/llguidance): an Earley parser over a lexer made of
derivatives of regular expressions, walked along a trie of the vocabulary. They depend on the tokens so far alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from penstock.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from llguidance import LLMatcher

T = TypeVar("T")


class Matcher:
    """Of one answer.

    The library keeps every state that it meets, in any answer with the grammar, also those of what was only looked at,
    and gives up where they are too many. Then the grammar is compiled anew, and brought to where the answer is, so that
    neither looking ahead nor what was answered before ends it.
    """

    def __init__(
        self, compiled: Callable[[LLMatcher | None], LLMatcher], vocab_size: int, stop_ids: Sequence[int] = ()
    ) -> None:
        """`compiled`: the grammar at its beginning, where it is left; another than the one that is given. `stop_ids`:
        tokens that end an answer. Raises as `compiled`."""
        self._compiled = compiled
        self._grammar = compiled(None)
        self._backend = self._grammar.deep_copy()
        self._vocab_size = vocab_size
        self._stop_ids = list(stop_ids)
        self._taken: list[int] = []
        self._ahead: list[int] = []
        """What the backend has consumed beyond that."""

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but the end."""
        backend = self._sound()
        if backend.is_stopped() or not backend.is_accepting():
            return backend.is_stopped()
        further = self.mask()
        further[self._stop_ids] = False
        return not further.any()

    def take(self, token: int) -> None:
        """A token that was drawn. Raises GrammarError where it may not follow, or the grammar is too much to follow."""
        self._consume([token])
        self._taken.append(token)

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says, as its tokenizer would write them; mostly none."""

        def of(backend: LLMatcher) -> list[int]:
            tokens = [] if backend.is_stopped() else backend.compute_ff_tokens()
            # Text that spells out a token of the tokenizer's own, like "<tool_call>", becomes that, which is no text.
            return tokens[: backend.validate_tokens(tokens)]

        return self._ask(of)

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether these may follow one another from here on. Raises GrammarError as `mask`."""
        return self._ask(lambda backend: backend.validate_tokens([*tokens]) == len(tokens))

    @contextmanager
    def after(self, tokens: Sequence[int]) -> Iterator[None]:
        """As far as if these, which are allowed, were taken, for as long as the context lasts. Raises GrammarError
        where the grammar is too much to follow."""
        if tokens:
            self._consume([*tokens])
        self._ahead += tokens
        try:
            yield
        finally:
            del self._ahead[len(self._ahead) - len(tokens) :]
            if tokens and not self._backend.is_error():
                self._backend.rollback(len(tokens))

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which tokens may follow: bool [vocab_size], one of them at least. Raises GrammarError where the grammar is
        too much to follow."""
        words = np.zeros(-(-self._vocab_size // 32), np.uint32)
        self._ask(lambda backend: backend.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes))
        allowed = np.unpackbits(words.view(np.uint8), count=self._vocab_size, bitorder="little").view(np.bool_)
        if not allowed.any():
            raise self._failed()
        return allowed

    def _consume(self, tokens: list[int]) -> None:
        if not self._ask(lambda backend: backend.consume_tokens(tokens)):
            raise self._failed()

    def _ask(self, question: Callable[[LLMatcher], T]) -> T:
        answer = question(self._sound())
        if self._backend.is_error():
            answer = question(self._anew())
            if self._backend.is_error():
                raise self._failed()
        return answer

    def _sound(self) -> LLMatcher:
        return self._anew() if self._backend.is_error() else self._backend

    def _anew(self) -> LLMatcher:
        """From the beginning to where it was."""
        self._grammar = self._compiled(self._grammar)
        self._backend = self._grammar.deep_copy()
        if consumed := [*self._taken, *self._ahead]:
            self._backend.consume_tokens(consumed)
        return self._backend

    def _failed(self) -> GrammarError:
        reason = " ".join(self._backend.get_error().split())[:400] or "no token may follow"
        return GrammarError(
            f"The answer cannot follow its grammar any further: {reason}", "Ask for something simpler in form."
        )
