"""Grammars over a model's own tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer

from penstock.errors import TokenizerError
from penstock.grammars.grammar import KEPT, LIMITS, deep
from penstock.grammars.matcher import Matcher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from penstock.grammars.grammar import Grammar

TOKEN_BYTES = 640
"""What the trie of a vocabulary takes, a token, with what is there while it is built; measured with 152,000 tokens."""
GRAMMAR_BYTES = 4 << 20
"""What a grammar takes, by far the most of them less."""


class GrammarCompiler:
    """Makes matchers of grammars; the vocabulary is taken in when the first one is asked for."""

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        vocab_size: int,
        stop_ids: Collection[int],
        make_room: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        """`tokenizer_json`: the content of a tokenizer.json; `vocab_size`: of the model, which may be larger;
        `stop_ids`: tokens that end an answer; `make_room`: for so many bytes that stay from then on."""
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._make_room = make_room
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def told_bytes(self) -> int:
        """What it keeps, to be counted against the ceiling."""
        return 0 if self._vocabulary is None else self._nbytes

    most_told_bytes = told_bytes

    @property
    def _nbytes(self) -> int:
        return TOKEN_BYTES * self._vocab_size + KEPT * GRAMMAR_BYTES

    def matcher(self, grammar: Grammar) -> Matcher:
        """For a new answer. Raises UsageError for a grammar that cannot be followed, MemoryCeilingError, and
        TokenizerError where the library cannot read the tokenizer."""
        return Matcher(lambda worn: self._compiled(grammar, worn), self._vocab_size, self._stop_ids)

    def _compiled(self, grammar: Grammar, worn: LLMatcher | None = None) -> LLMatcher:
        """At its beginning, with states of its own where those of `worn`, which copies share, have become too many."""
        kept = self._kept.get(grammar)
        if kept is None or kept is worn:
            kept = self._kept[grammar] = self._compile(grammar)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(grammar)
        return kept

    def _compile(self, grammar: Grammar) -> LLMatcher:
        source = grammar.source()
        if self._vocabulary is None:
            self._make_room(self._nbytes)
            self._vocabulary = self._read()
            self._make_room = lambda nbytes: None  # matchers that somebody still has lead here, not to a closed model
        vocabulary = self._vocabulary
        compiled = deep(lambda: LLMatcher(vocabulary, source, log_level=0, limits=LIMITS))
        if compiled.is_error():
            raise grammar.refused(compiled.get_error())
        return compiled

    def _read(self) -> LLTokenizer:
        try:
            return LLTokenizer(self._tokenizer_json(), n_vocab=self._vocab_size, eos_token=self._stop_ids or None)
        except Exception as error:  # the library raises plain ones
            reason = " ".join(str(error).split())[:400]
            raise TokenizerError(
                f"This tokenizer's tokens cannot be held to a grammar: {reason}", "Leave schema and grammar out."
            ) from error
