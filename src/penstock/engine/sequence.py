"""One sequence on its way: its prompt, what was drawn so far, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.logprobs import TokenLogprobs, logprobs_bytes, token_logprobs
from penstock.memory.prefixes import common_blocks
from penstock.models.logits import Likeliest
from penstock.models.rows import SequenceRows
from penstock.speculate.speculator import Record
from penstock.speculate.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from penstock.compute.kernels import F32
    from penstock.errors import PenstockError
    from penstock.grammars.matcher import Matcher
    from penstock.models.kv_cache import KvCache
    from penstock.models.logits import Logits
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
    stores_prompt: bool = True
    """Whether its prompt's keys and values may be kept on the disk: not where they may come from anywhere, or are in a
    file of their own."""
    token_ids: list[int] = field(default_factory=list)
    """Drawn so far; those that an earlier run drew are there from the beginning."""
    matcher: Matcher | None = None
    """What the answer has to be, as far as it has come."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to tell with the logarithm of each drawn token's probability; None: neither."""
    finish_reason: str | None = None
    """"stop" after a stop token or string, "length" at max_tokens or the end of the context, "error"."""
    error: PenstockError | None = None

    cached_tokens: int = 0
    """How many of the prompt's first tokens others had computed, in memory or in an earlier run."""
    kept_blocks: int = 0
    """How many of the prompt's first blocks were to be kept on the disk so far (engine/stored_prefixes.py)."""

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
        trunk = self.pending[1:]
        context = self.tokens[: self.cache.length + 1]
        deepest = self.max_tokens - len(self.token_ids) - 1 + len(trunk)
        return Tree(self, context, self.sampler, self.cache, deepest, trunk, self.matcher)

    @property
    def may_guess(self) -> bool:
        """Whether all that is to be computed first was drawn, or came with what was."""
        return self.cache.length >= len(self.prompt) or len(self.pending) == 1

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
            likeliest, held = self.takes_likeliest, self.matcher is not None
            return SequenceRows.tree(self.cache, tree.tokens, tree.parents, likeliest, first_whole=held, tip=tree.tip)
        return SequenceRows.plain(self.cache, tokens, wanted=(-1,) if last else ())

    @property
    def takes_likeliest(self) -> bool:
        """Whether a token can be drawn from the likeliest ones alone."""
        return self.sampler.takes_likeliest and self.top_logprobs is None

    def take(self, logits: Logits) -> None:
        """What a pass without guesses tells of the rows that it asked about, if any."""
        if len(logits):
            self.draw(logits.row(0))

    def begin(self) -> None:
        """Take in what an earlier run drew, or what the grammar forces before anything is drawn."""
        if self.matcher is not None:
            for token in self.token_ids:
                self.matcher.take(token)
            if not self.token_ids:
                self._take_forced()
        self._end_where_it_must()

    def draw(self, logits: F32 | Likeliest) -> list[int] | None:
        """The next token, from the one row of logits after the last one, and those that the grammar forces
        after it; none where that ends the sequence. None where the likeliest tokens do not tell the next one."""
        token = self._draw(logits)
        if token is None:
            return None
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return []
        before = len(self.token_ids)
        self.token_ids.append(token)
        if self.top_logprobs is not None and not isinstance(logits, Likeliest):
            self.logprobs.append(token_logprobs(logits[0], token, self.top_logprobs))
        if self.matcher is not None:
            self.matcher.take(token)
            self._take_forced()
        self._end_where_it_must()
        return self.token_ids[before:] if self.finish_reason is None else []

    def _draw(self, logits: F32 | Likeliest) -> int | None:
        position = len(self.prompt) + len(self.token_ids)
        if isinstance(logits, Likeliest):
            return self.sampler.best(logits, position, None if self.matcher is None else self.matcher.allows)
        allowed = None if self.matcher is None else self.matcher.mask()
        return self.sampler(logits[0], position, self.tokens, allowed)

    def _take_forced(self) -> None:
        """What the grammar forces is as good as drawn, whatever the logits are: a token that no other could replace."""
        if self.matcher is None or len(self.token_ids) >= self.max_tokens:
            return
        for token in self.matcher.forced()[: self.max_tokens - len(self.token_ids)]:
            self.matcher.take(token)
            self.token_ids.append(token)
            if self.top_logprobs is not None:
                self.logprobs.append(TokenLogprobs.of(token, 0.0, [(token, 0.0)] * (self.top_logprobs > 0)))

    def _end_where_it_must(self) -> None:
        if self.matcher is not None and self.matcher.ended:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
