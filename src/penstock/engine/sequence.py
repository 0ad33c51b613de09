"""One sequence on its way: its prompt, what was drawn so far, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.logprobs import logprobs_bytes, token_logprobs
from penstock.memory.prefixes import common_blocks
from penstock.models.logits import Likeliest
from penstock.models.rows import SequenceRows
from penstock.models.scores import Scores
from penstock.speculate.speculator import Record
from penstock.speculate.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from penstock.compute.kernels import F32
    from penstock.errors import PenstockError
    from penstock.logprobs import TokenLogprobs
    from penstock.models.kv_cache import KvCache
    from penstock.models.pass_stats import PassStats
    from penstock.sampling import Sampler


@dataclass(eq=False)
class Sequence:
    """A sequence that waits for memory, takes part in passes, or has ended."""

    prompt: list[int]
    sampler: Sampler
    max_tokens: int
    stop_ids: frozenset[int]
    cache: KvCache
    lent: bool = False
    """Whether the cache is its caller's, who keeps it, and what is in it, when this ends."""
    token_ids: list[int] = field(default_factory=list)
    """Drawn so far; those that an earlier run drew are there from the beginning."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to tell with the logarithm of each drawn token's probability; None: neither."""
    finish_reason: str | None = None
    """"stop" after a stop token or string, "length" at max_tokens or the end of the context, "error"."""
    error: PenstockError | None = None

    guesses: Record = field(default_factory=Record)
    """What became of the guesses at its tokens."""

    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the tokens that were drawn here, where they were asked for."""

    after_pass: Callable[[PassStats], None] = lambda stats: None
    """Told of every pass that this took part in."""

    @property
    def pending(self) -> list[int]:
        """Tokens whose keys and values are not in the cache yet; never empty while the sequence runs."""
        done, prompt = self.cache.length, len(self.prompt)
        return self.prompt[done:] + self.token_ids if done < prompt else self.token_ids[done - prompt :]

    @property
    def tokens(self) -> list[int]:
        """The prompt's and those drawn so far."""
        return self.prompt + self.token_ids

    @property
    def most_slots(self) -> int:
        """How many positions the cache may come to have: the last token's keys are never needed."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def adoptable(self) -> list[int]:
        """The tokens of which it may take over keys and values, all but the last."""
        return self.tokens

    @property
    def told_bytes(self) -> int:
        """What is there to be told of its tokens' probabilities."""
        return len(self.logprobs) * logprobs_bytes(self.top_logprobs)

    @property
    def most_told_bytes(self) -> int:
        """What there may come to be."""
        return self.told_bytes if self.finish_reason else self.max_tokens * logprobs_bytes(self.top_logprobs)

    def expected_blocks(self, others: Iterable[Sequence]) -> int:
        """Blocks that it is going to share with one of them, computed or not."""
        tokens = self.adoptable
        # The last token of the other may stay its last.
        alike = (s for s in others if not s.lent and s.cache.adapter == self.cache.adapter)
        return max((common_blocks(other.tokens[:-1], tokens) for other in alike), default=0)

    def root(self) -> Tree:
        """A tree of no guesses yet, after the last token."""
        return Tree(self, self.tokens, self.sampler, self.cache, self.max_tokens - len(self.token_ids) - 1)

    @property
    def scores(self) -> bool:
        """Whether it has tokens scored, and draws none (scoring.py)."""
        return False

    def scored_rows(self, count: int) -> int:
        """How many of its next `count` tokens have a score wanted of them."""
        return 0

    def rows(self, tokens: list[int], tree: Tree | None, last: bool) -> SequenceRows:
        """What it adds to a pass: the next of its pending tokens, maybe the `last` of them, or a tree of guesses."""
        if tree is not None:
            return SequenceRows.tree(self.cache, tree.tokens, tree.parents, self.takes_likeliest)
        return SequenceRows.plain(self.cache, tokens, wanted=(-1,) if last else ())

    @property
    def takes_likeliest(self) -> bool:
        """Whether a token can be drawn from the likeliest ones alone."""
        return self.sampler.takes_likeliest and self.top_logprobs is None

    def draw(self, logits: F32 | Likeliest | Scores) -> int | None:
        """The next token, from the one row of logits after the last one; None where that ends the sequence."""
        tokens = self.tokens
        if isinstance(logits, Scores):
            raise TypeError("scores are for sequences that are scored")
        if isinstance(logits, Likeliest):
            token = self.sampler.best(logits, len(tokens))
        else:
            token = self.sampler(logits[0], len(tokens), tokens)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return None
        self.token_ids.append(token)
        if self.top_logprobs is not None and not isinstance(logits, Likeliest):
            self.logprobs.append(token_logprobs(logits[0], token, self.top_logprobs))
        if len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
            return None
        return token
