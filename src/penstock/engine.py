"""The generation loop: sequences in, passes over the weights, one token or several a sequence and pass out.

Every pass serves all active sequences at once, prefill chunks, single tokens and trees of guesses alike. What a
sequence yields depends on nothing but its own prompt and parameters.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import ContextError, NumericsError
from penstock.kv_cache import KvCache
from penstock.rows import Rows, SequenceRows
from penstock.sampling import Sampler
from penstock.speculate.speculator import Record, walk
from penstock.speculate.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from penstock.config import GenerationDefaults
    from penstock.kernels import F32, Kernels
    from penstock.kv_cache import KvShape
    from penstock.memory import Memory
    from penstock.sampling import SamplingParams
    from penstock.speculate.speculator import Speculator
    from penstock.stage import PassStats, Stage

MAX_ROWS = 4096
"""Rows of one pass: prompts up to this length cost one pass over the disk."""


@dataclass(eq=False)
class Generation:
    """One sequence on its way: its prompt, what was drawn so far, and why it ended."""

    prompt: list[int]
    sampler: Sampler
    max_tokens: int
    stop_ids: frozenset[int]
    cache: KvCache
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop" after a stop token or string, "length" at max_tokens or the end of the context, "error"."""
    error: NumericsError | None = None

    guesses: Record = field(default_factory=Record)
    """What became of the guesses at its tokens."""

    after_pass: Callable[[PassStats], None] = lambda stats: None
    """Told of every pass that this generation took part in."""

    @property
    def pending(self) -> list[int]:
        """Tokens whose keys and values are not in the cache yet; never empty while the generation runs."""
        done, prompt = self.cache.length, len(self.prompt)
        return self.prompt[done:] + self.token_ids if done < prompt else self.token_ids[done - prompt :]

    @property
    def tokens(self) -> list[int]:
        """The prompt's and those drawn so far."""
        return self.prompt + self.token_ids

    def root(self) -> Tree:
        """A tree of no guesses yet, after the last token."""
        return Tree(self, self.tokens, self.sampler, self.cache, self.max_tokens - len(self.token_ids) - 1)

    def draw(self, logits: F32) -> int | None:
        """The next token, from the logits after the last one; None where that ends the sequence."""
        tokens = self.tokens
        token = self.sampler(logits, len(tokens), tokens)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return None
        self.token_ids.append(token)
        if len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"
            return None
        return token


def _rows(generation: Generation, tokens: list[int], tree: Tree | None) -> SequenceRows:
    """What one sequence adds to a pass."""
    if tree is not None:
        return SequenceRows.tree(generation.cache, tree.tokens, tree.parents)
    ends = len(tokens) == len(generation.pending)
    return SequenceRows.plain(generation.cache, tokens, wanted=(-1,) if ends else ())


class Engine:
    """Runs generations over one stage."""

    def __init__(
        self,
        stage: Stage,
        kernels: Kernels,
        kv_shape: KvShape,
        context: int,
        defaults: GenerationDefaults,
        max_rows: int = MAX_ROWS,
        memory: Memory | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        """`context`: positions that a sequence may have; `defaults`: for parameters that are left open; `memory`:
        makes room for each pass, and says how many rows it may have; `speculator`: guesses tokens for passes to check.
        """
        self.stage = stage
        self.speculator = speculator
        self.context = context
        self.active: list[Generation] = []
        self._kernels = kernels
        self._defaults = defaults
        self._kv_shape = kv_shape
        self._max_rows = max_rows
        self._memory = memory

    def add(self, prompt: Sequence[int], params: SamplingParams, most_tokens: int | None = None) -> Generation:
        """Let a generation take part in the passes from now on; `most_tokens` limits it beside its parameters.

        Raises UsageError for an empty prompt or a token that the model does not have, ContextError where the context
        has no room for the prompt and one token.
        """
        tokens = list(prompt)
        self.check_prompt(tokens)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        limits = (self.context - len(tokens), params.max_tokens, most_tokens)
        max_tokens = min(limit for limit in limits if limit is not None)
        generation = Generation(
            prompt=tokens,
            sampler=Sampler(params.rule(self._defaults), seed, self._kernels),
            max_tokens=max_tokens,
            stop_ids=frozenset(() if params.ignore_eos else self._defaults.eos_token_ids),
            cache=self._new_cache(len(tokens) + max_tokens - 1),  # the last token's keys are never needed
        )
        self.active.append(generation)
        return generation

    def step(self) -> PassStats:
        """One pass for all active generations: each goes on by a chunk of its prompt or by a token.

        Ended generations have left, and their caches are free. Raises ReadError and MemoryCeilingError; the caches then
        hold what was committed before. A generation whose logits are not finite ends with a NumericsError of its own.
        """
        begin = time.perf_counter()
        for ended in [g for g in self.active if g.finish_reason is not None]:
            self.cancel(ended)
        chunks = self._chunks()
        trees = self._guess(chunks)
        draft_seconds = time.perf_counter() - begin
        rows = Rows([_rows(generation, tokens, trees.get(generation)) for generation, tokens in chunks])
        if self._memory is not None and not trees:
            self._memory.before_pass(rows)
        logits, stats = self.stage.run(rows)
        first = 0
        for (generation, tokens), part in zip(chunks, rows.sequences, strict=True):
            own = logits[first : first + len(part.wanted)]
            first += len(part.wanted)
            self._take(generation, tokens, trees.get(generation), own)
        guesses = sum(len(tree) - 1 for tree in trees.values())
        stats = replace(
            stats, seconds=time.perf_counter() - begin, draft_seconds=draft_seconds * bool(trees), guesses=guesses
        )
        if self.speculator is not None:
            self.speculator.learn_pass(stats, self.stage.weights.streamed_bytes)
        for generation, _ in chunks:
            generation.after_pass(stats)
        return stats

    def _guess(self, chunks: Sequence[tuple[Generation, list[int]]]) -> dict[Generation, Tree]:
        """Trees for those sequences of a pass whose next token would be all that it brings."""
        ready = [g for g, tokens in chunks if len(tokens) == len(g.pending) == 1]
        if self.speculator is None or not ready:
            return {}
        begin, rows = time.perf_counter(), sum(len(tokens) for _, tokens in chunks)
        most = min(self.speculator.most_nodes, self._max_rows - rows)
        if self._memory is not None:
            slots = {g.cache: g.cache.length + len(tokens) for g, tokens in chunks}
            most = min(most, self._memory.most_guesses(slots, rows))
            self._memory.before_guessing(slots, rows, most)
        trees = self.speculator.guess([g.root() for g in ready], rows - len(ready), most)
        nodes = sum(len(tree) - 1 for tree in trees)
        self.stage.weights.events.tell("draft", f"{nodes} guess{'es' * (nodes != 1)}", begin, time.perf_counter())
        return dict(zip(ready, trees, strict=True))

    def _take(self, generation: Generation, tokens: list[int], tree: Tree | None, logits: F32) -> None:
        """What a pass told one sequence: draw as far as it goes, and commit what will be needed.

        A sequence that cannot draw ends with its error, and the others go on.
        """
        cache, before = generation.cache, len(generation.token_ids)
        if tree is None:
            cache.truncate(cache.length + len(tokens))
        if not len(logits):
            return
        try:
            nodes = walk(tree or generation.root(), logits, generation.draw)
        except NumericsError as error:
            generation.error = error
            self.cancel(generation, "error")
            return
        if tree is not None and self.speculator is not None:
            cache.keep(np.array(nodes) + cache.length)
            drawn = generation.token_ids[before:]
            generation.guesses.take(tree, drawn)
            self.speculator.learn(tree, nodes, drawn, logits)

    def cancel(self, generation: Generation, reason: str = "stop") -> None:
        """Take a generation out of the passes, ended for `reason` unless it had ended already, and free its cache."""
        generation.finish_reason = generation.finish_reason or reason
        generation.cache.truncate(0)
        if self.speculator is not None:
            self.speculator.forget(generation)
        self.active = [g for g in self.active if g is not generation]

    def _chunks(self) -> list[tuple[Generation, list[int]]]:
        """What each generation computes in this pass: the shortest first, as far as the rows go."""
        left, chunks = self._most_rows(), []
        for generation in sorted(self.active, key=lambda g: len(g.pending)):
            tokens = generation.pending[:left]
            if not tokens:
                break
            left -= len(tokens)
            chunks.append((generation, tokens))
        return chunks

    def _new_cache(self, most_slots: int) -> KvCache:
        return KvCache(self._kv_shape) if self._memory is None else self._memory.new_cache(most_slots)

    def _most_rows(self) -> int:
        if self._memory is None:
            return self._max_rows
        slots = {g.cache: g.cache.length + min(len(g.pending), self._max_rows) for g in self.active}
        return min(self._max_rows, self._memory.most_rows(slots, logit_rows=len(slots)))

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raise as `add` does."""
        self.stage.model.check_tokens(tokens)
        if len(tokens) >= self.context:
            raise ContextError(
                f"The prompt has {len(tokens)} tokens; a context of {self.context} has no room for it and an answer.",
                "Shorten the prompt, or raise --context (up to what the model was trained for).",
            )
