"""The generation loop: sequences in, passes over the weights, one token or several a sequence and pass out.

Every pass serves all active sequences at once, prefill chunks, single tokens and trees of guesses alike. Sequences join
and leave between passes; those whose keys and values do not fit beside the others' wait. What a sequence yields depends
on nothing but its own prompt and parameters: where its own part of the work raises, whatever that is, it ends with that
error, and the others go on. What a whole pass raises is its caller's, and the pass may be tried again.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.engine.generation import Generation
from penstock.errors import ContextError, InternalError, MemoryCeilingError
from penstock.memory.prefixes import Prefix, longest
from penstock.models.kv_cache import BLOCK_SLOTS, KvCache
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import PassStats
from penstock.sampling import Sampler
from penstock.speculate.speculator import walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from penstock.checkpoints.config import GenerationDefaults
    from penstock.compute.kernels import F32, Kernels
    from penstock.memory.memory import Memory
    from penstock.models.kv_cache import KvShape
    from penstock.models.stage import Stage
    from penstock.sampling import SamplingParams
    from penstock.speculate.speculator import Speculator
    from penstock.speculate.tree import Tree

    Chunk = tuple[Generation, list[int]]
    """What a sequence computes in a pass: the next of its pending tokens."""

MAX_ROWS = 4096
"""Rows of one pass: prompts up to this length cost one pass over the disk."""


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
        """Those that take part in passes."""
        self.waiting: deque[Generation] = deque()
        """Those that will, in the order in which they came, as soon as their keys and values fit beside the others'."""
        self._kernels = kernels
        self._defaults = defaults
        self._kv_shape = kv_shape
        self._max_rows = max_rows
        self._memory = memory
        self.room_for_prompts = False
        """Whether sequences wait, too, where memory would leave prompts only few rows a pass, and so many passes."""
        self.kept = None if memory is None else memory.caches.kept

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        most_tokens: int | None = None,
        *,
        drawn: Sequence[int] = (),
        choice: int = 0,
        cache: KvCache | None = None,
    ) -> Generation:
        """Let a generation take part in the passes from now on, or as soon as there is room for it.

        `most_tokens` limits it beside its parameters. `drawn`: tokens that an earlier run of it drew already; it goes
        on with those that it would have drawn next. `choice`: several answers to a prompt differ by it. `cache`: has
        keys and values of the first tokens, comes to have those of the others, and stays the caller's.

        Raises UsageError for an empty prompt or a token that the model does not have, ContextError where the context
        has no room for the prompt and one token.
        """
        tokens, drawn = list(prompt), list(drawn)
        self.check_prompt(tokens)
        if drawn:
            self.stage.model.check_tokens(drawn)
        for holder in [g for g in (*self.active, *self.waiting) if g.cache is cache]:
            self.cancel(holder)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        limits = (self.context - len(tokens), params.max_tokens, most_tokens)
        generation = Generation(
            prompt=tokens,
            sampler=Sampler(params.rule(self._defaults), seed, self._kernels, choice),
            max_tokens=min(limit for limit in limits if limit is not None),
            stop_ids=frozenset(() if params.ignore_eos else self._defaults.eos_token_ids),
            cache=self._new_cache() if cache is None else cache,
            lent=cache is not None,
            token_ids=drawn,
            top_logprobs=params.logprobs,
        )
        if len(drawn) >= generation.max_tokens:
            generation.finish_reason = "length"
        else:
            self.waiting.append(generation)
            try:
                self._admit()
            except BaseException:  # nobody has it, so nobody would ever cancel it
                self.cancel(generation)
                raise
        return generation

    def _new_cache(self) -> KvCache:
        return KvCache(self._kv_shape) if self._memory is None else self._memory.new_cache()

    @property
    def busy(self) -> bool:
        """Whether there is anything left to compute."""
        return any(g.finish_reason is None for g in (*self.active, *self.waiting))

    def step(self) -> PassStats:
        """One pass for all active generations: each goes on by a chunk of its prompt or by a token.

        Ended generations have left, and their caches are free. Raises ReadError and MemoryCeilingError; the caches then
        hold what was committed before. A generation whose own part of the pass raises ends with that as its error: a
        NumericsError where its logits are not finite, a MemoryCeilingError where it has no room even by itself, an
        InternalError, which has its cause, for what nobody expects. Where none is left to go on the pass has no rows.
        """
        begin = time.perf_counter()
        for ended in [g for g in self.active if g.finish_reason is not None]:
            self.cancel(ended)
        if self.kept is not None and self._memory is not None and self._memory.pressed:
            self.kept.clear()
        self._admit(must=True)
        adopting: list[Generation] = []
        try:
            chunks, trees, parts, draft_seconds = self._gather(adopting)
            if not chunks:
                return PassStats(0, (), time.perf_counter() - begin, 0.0)
            rows = Rows(parts)
            if self._memory is not None and not trees:
                self._memory.before_pass(rows)
            logits, stats = self.stage.run(rows)
        except BaseException:
            _give_back(adopting)
            raise
        first = 0
        for (generation, tokens), part in zip(chunks, parts, strict=True):
            own = logits[first : first + len(part.wanted)]
            first += len(part.wanted)
            with self._own_work(generation):
                self._take(generation, tokens, trees.get(generation), own)
        guesses = sum(len(tree) - 1 for tree in trees.values())
        seconds = time.perf_counter() - begin
        stats = replace(stats, seconds=seconds, draft_seconds=draft_seconds, guesses=guesses)
        if self.speculator is not None:
            self.speculator.learn_pass(stats, self.stage.weights.streamed_bytes)
        for generation, _ in chunks:
            with self._own_work(generation):
                generation.after_pass(stats)
        return stats

    @contextmanager
    def _own_work(self, generation: Generation) -> Iterator[None]:
        """One sequence's part of the work: where it raises, the sequence ends with that, and the others go on."""
        try:
            yield
        except Exception as error:
            self._fail(generation, error)

    def _fail(self, generation: Generation, error: Exception) -> None:
        """End a sequence with an error; the first one counts."""
        generation.error = generation.error or InternalError.of(error)
        generation.finish_reason = "error"
        self.cancel(generation)

    def _gather(
        self, adopting: list[Generation]
    ) -> tuple[list[Chunk], dict[Generation, Tree], list[SequenceRows], float]:
        """What the next pass computes: chunks, trees of guesses, the rows of each chunk; and the seconds of guessing.

        Where one fails, all begin anew: others may have been about to share what it was to compute.
        """
        while True:
            chunks = self._chunks(adopting)
            begin = time.perf_counter()
            trees = self._guess(chunks)
            draft_seconds = (time.perf_counter() - begin) * bool(trees)
            parts = []
            for generation, tokens in chunks:
                with self._own_work(generation):
                    parts.append(generation.rows(tokens, trees.get(generation)))
            if all(generation.error is None for generation, _ in chunks):
                return chunks, trees, parts, draft_seconds
            _give_back(adopting)

    def _guess(self, chunks: Sequence[Chunk]) -> dict[Generation, Tree]:
        """Trees for those sequences of a pass whose next token would be all that it brings."""
        if self.speculator is None:
            return {}
        roots: dict[Generation, Tree] = {}
        for generation, tokens in chunks:
            with self._own_work(generation):
                if len(tokens) == len(generation.pending) == 1:
                    roots[generation] = generation.root()
        if not roots:
            return {}
        begin, rows = time.perf_counter(), sum(len(tokens) for _, tokens in chunks)
        most = min(self.speculator.most_nodes, self._max_rows - rows)
        if self._memory is not None:
            slots = {g.cache: g.cache.length + len(tokens) for g, tokens in chunks}
            most = min(most, self._memory.most_guesses(slots, rows))
            if most <= 0:
                return {}
            self._memory.before_guessing(slots, rows, most)
        trees = self.speculator.guess([*roots.values()], rows - len(roots), most)
        nodes = sum(len(tree) - 1 for tree in trees)
        self.stage.weights.events.tell("draft", f"{nodes} guess{'es' * (nodes != 1)}", begin, time.perf_counter())
        return dict(zip(roots, trees, strict=True))

    def _take(self, generation: Generation, tokens: list[int], tree: Tree | None, logits: F32) -> None:
        """What a pass told one sequence: draw as far as it goes, and commit what will be needed."""
        cache, before = generation.cache, len(generation.token_ids)
        nodes = walk(tree or generation.root(), logits, generation.draw) if len(logits) else []
        # After the draws: wherever Ctrl-C comes, what is not in the cache will be computed.
        if tree is None:
            cache.truncate(cache.length + len(tokens))
        elif self.speculator is not None:
            cache.keep(np.array(nodes) + cache.length)
            drawn = generation.token_ids[before:]
            generation.guesses.take(tree, drawn)
            self.speculator.learn(tree, nodes, drawn, logits)

    def cancel(self, generation: Generation, reason: str = "stop") -> None:
        """Take a generation out of the passes, ended for `reason` unless it had ended already, and free its cache.

        Its keys and values may be kept for sequences that begin alike; a cache that was lent goes back as it is.
        """
        generation.finish_reason = generation.finish_reason or reason
        try:
            self._free(generation)
        except Exception:  # and not Ctrl-C, after which the next pass tries again
            self._remove(generation)
            raise
        self._remove(generation)

    def _free(self, generation: Generation) -> None:
        """Give back what a generation has."""
        if self.kept is not None and generation.error is None and not generation.lent:
            self.kept.keep(generation.tokens, generation.cache)
        generation.cache.truncate(generation.cache.length if generation.lent else 0)
        if self._memory is not None:
            self._memory.caches.promise(generation.cache, 0)
        if self.speculator is not None:
            self.speculator.forget(generation)

    def _remove(self, generation: Generation) -> None:
        """Take a generation out of the passes."""
        self.active = [g for g in self.active if g is not generation]
        if generation in self.waiting:
            self.waiting.remove(generation)

    def _admit(self, *, must: bool = False) -> None:
        """Let those that wait take part, in their order, as long as there is room.

        `must`: where none takes part, the next one has to. Raises MemoryCeilingError where it cannot.
        """
        for ended in [g for g in self.waiting if g.finish_reason is not None]:
            self.cancel(ended)
        self._renew_promises()
        while self.waiting:
            generation = self.waiting[0]
            fits, shared = True, 0
            with self._own_work(generation):
                held = generation.cache.nbytes // self._kv_shape.block_bytes
                shared = held or generation.expected_blocks(self.active)
                fits = self._has_room(generation, shared)
            if generation.error is not None:
                continue
            if not fits:
                if not must or self.active:
                    return
                self._require_room(generation)
            if self._memory is not None:
                adopted = generation.cache.adopted if generation.cache.nbytes else shared
                self._memory.caches.promise(generation.cache, generation.most_slots, adopted)
                if generation.top_logprobs is not None:
                    self._memory.caches.tellers.add(generation)
            self.active.append(self.waiting.popleft())

    def _has_room(self, generation: Generation, shared: int) -> bool:
        """Whether there is room for a sequence that shares so many blocks."""
        if self._memory is None:
            return True
        rows = self._prompt_rows(generation, shared) if self.room_for_prompts else 0
        return self._memory.admits(generation.most_slots, shared, rows, generation.most_told_bytes)

    def _prompt_rows(self, generation: Generation, shared: int) -> int:
        """What the next pass would have to compute, if it could, with this sequence and those that take part."""
        rows = sum(len(g.prompt) + len(g.token_ids) - g.cache.length for g in (*self.active, generation))
        return min(rows - shared * BLOCK_SLOTS, self._max_rows)

    def _require_room(self, generation: Generation) -> None:
        """End a sequence with a MemoryCeilingError, and raise it, where it does not fit even by itself."""
        try:
            if self._memory is not None:
                self._memory.most_tokens([len(generation.prompt)], generation.max_tokens, self.context)
        except MemoryCeilingError as error:
            self._fail(generation, error)
            raise

    def _renew_promises(self) -> None:
        """What each may come to need, now that others have come, computed what they share, or left."""
        if self._memory is None or not self.waiting:
            return
        active = self.active
        for index, g in enumerate(active):
            with self._own_work(g):
                shared = g.cache.adopted if g.cache.own_bytes else g.expected_blocks(active[:index])
                self._memory.caches.promise(g.cache, g.most_slots, shared)

    def _chunks(self, adopting: list[Generation]) -> list[Chunk]:
        """What each generation computes in this pass, the shortest first, as far as the rows go. Those that begin with
        keys and values of others are added to `adopting`."""
        pending: dict[Generation, int] = {}
        for generation in self.active:
            with self._own_work(generation):
                pending[generation] = len(generation.pending)
        left = self._most_rows(pending)
        chunks: list[Chunk] = []
        for generation in sorted(pending, key=lambda g: pending[g]):
            if not left:
                break
            with self._own_work(generation):
                if generation.cache.own_bytes or self._begin(generation, pending, chunks, adopting):
                    tokens = generation.pending[:left]
                    left -= len(tokens)
                    chunks.append((generation, tokens))
        return chunks

    def _begin(
        self,
        generation: Generation,
        pending: Mapping[Generation, int],
        chunks: Sequence[Chunk],
        adopting: list[Generation],
    ) -> bool:
        """Take over what others have in common with it, or compute in this very pass. False where it had better wait,
        since one that is amid its prompt will come to have more of it."""
        cache = generation.cache
        if generation.lent and cache.length:
            return True
        prefix, blocks = longest(self._prefixes(generation, chunks), generation.tokens)
        amid = [g for g, count in pending.items() if g.cache.own_bytes and count > 1]
        if generation.expected_blocks(amid) > max(blocks, cache.adopted):
            return False
        if prefix is None or blocks <= cache.adopted:
            return True
        adopting.append(generation)
        prefix.cache.reserve(blocks * BLOCK_SLOTS)
        cache.adopt(prefix.cache, blocks)
        if self.kept is not None:
            self.kept.touch(prefix)
        return True

    def _prefixes(self, generation: Generation, chunks: Sequence[Chunk]) -> Iterator[Prefix]:
        """What every other sequence will have computed when this pass comes to the rows of `generation`; what a lent
        cache has may come from a file, so it is for its owner alone."""
        coming = {g: len(tokens) for g, tokens in chunks}
        for g in self.active:
            length = g.cache.length + coming.get(g, 0)
            if g is not generation and not g.lent and length >= BLOCK_SLOTS:
                yield Prefix(g.tokens, g.cache, length)
        if self.kept is not None:
            yield from self.kept

    def _most_rows(self, pending: Mapping[Generation, int]) -> int:
        """The rows of a pass for sequences with so many pending tokens."""
        if self._memory is None:
            return self._max_rows
        rows = {g.cache: min(count, self._max_rows) for g, count in pending.items()}
        slots = {cache: cache.length + count for cache, count in rows.items()}
        wanted = min(self._max_rows, sum(rows.values()))
        return min(self._max_rows, self._memory.most_rows(slots, logit_rows=len(slots), wanted=wanted))

    def check_prompt(self, tokens: Sequence[int]) -> None:
        """Raise as `add` does."""
        self.stage.model.check_tokens(tokens)
        if len(tokens) >= self.context:
            raise ContextError(
                f"The prompt has {len(tokens)} tokens; a context of {self.context} has no room for it and an answer.",
                "Shorten the prompt, or raise --context (up to what the model was trained for).",
            )


def _give_back(adopting: list[Generation]) -> None:
    """What these were to share has not been computed."""
    for generation in adopting:
        generation.cache.truncate(0)
    adopting.clear()
