"""The generation loop: sequences in, passes over the weights, one token or several a sequence and pass out.

Every pass serves all active sequences at once, prefill chunks, single tokens and trees of guesses alike; sequences join
and leave between passes. What a sequence yields depends on nothing but its own prompt and parameters. What a whole pass
raises is its caller's, and the pass may be tried again.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from penstock.engine.scheduler import MAX_ROWS, Scheduler
from penstock.engine.scoring import ScoredSequence
from penstock.engine.sequence import Sequence
from penstock.errors import ContextError, StageLostError, UsageError
from penstock.models.pass_stats import PassStats
from penstock.models.rows import Rows, SequenceRows
from penstock.models.tokens import check_prompt, check_tokens
from penstock.sampling import Sampler, SamplingRule
from penstock.speculate.speculator import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from collections.abc import Sequence as List

    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.compute.kernels import Kernels
    from penstock.engine.scheduler import Chunk
    from penstock.grammars.matcher import Matcher
    from penstock.memory.memory import Memory
    from penstock.models.chain import Chain
    from penstock.models.kv_cache import KvCache
    from penstock.models.logits import Logits
    from penstock.models.stage import Need
    from penstock.sampling import SamplingParams
    from penstock.speculate.speculator import Speculator
    from penstock.speculate.tree import Tree

T = TypeVar("T")

MOST_LOSSES = 5
"""Of stages one after the other, without a pass in between."""


class Engine:
    """Runs sequences over the stages of a model."""

    def __init__(
        self,
        chain: Chain,
        memory: Memory,
        speculator: Speculator,
        kernels: Kernels,
        context: int,
        defaults: GenerationDefaults,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """`memory`: says how many rows and sequences there is room for; `speculator`: guesses tokens for passes to
        check; `kernels`: for draws; `context`: positions that a sequence may have; `defaults`: for parameters that are
        left open."""
        self.chain = chain
        self.memory = memory
        self.context = context
        self.scheduler = Scheduler(memory, speculator, context, max_rows)
        self.replace_lost: Callable[[], None] | None = None
        """Puts others in the place of stages that are lost."""
        self._kernels = kernels
        self._defaults = defaults

    def add(
        self,
        prompt: List[int],
        params: SamplingParams,
        most_tokens: int | None = None,
        *,
        drawn: List[int] = (),
        choice: int = 0,
        cache: KvCache | None = None,
        adapter: str | None = None,
        matcher: Matcher | None = None,
        ends: Collection[int] = (),
    ) -> Sequence:
        """Let a sequence take part in the passes from now on, or as soon as there is room for it.

        `most_tokens` limits it beside its parameters. `drawn`: tokens that an earlier run of it drew already; it goes
        on with those that it would have drawn next. `choice`: several answers to a prompt differ by it. `cache`: has
        keys and values of the first tokens, comes to have those of the others, and stays the caller's. `adapter`: the
        one to go through, by name, where there is no cache, which has its own. `matcher`: what it has to be. `ends`:
        tokens that end it, besides the model's own.

        Raises UsageError for an empty prompt or a token that the model does not have, ContextError where the context
        has no room for the prompt and one token.
        """
        tokens, drawn = list(prompt), list(drawn)
        check_prompt(tokens, self.chain.vocab_size, self.context)
        if drawn:
            check_tokens(drawn, self.chain.vocab_size)
        for holder in [s for s in self.scheduler.all if s.cache is cache]:
            self.cancel(holder)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        limits = (self.context - len(tokens), params.max_tokens, most_tokens)
        sequence = Sequence(
            prompt=tokens,
            sampler=Sampler(params.rule(self._defaults), seed, self._kernels, choice, len(tokens)),
            max_tokens=min(limit for limit in limits if limit is not None),
            stop_ids=frozenset(() if params.ignore_eos else (*self._defaults.eos_token_ids, *ends)),
            cache=self.memory.new_cache(adapter=adapter) if cache is None else cache,
            lent=cache is not None,
            stores_prompt=cache is None,
            token_ids=drawn,
            top_logprobs=params.logprobs,
            matcher=matcher,
        )
        sequence.begin()
        if sequence.finish_reason is None:
            self.scheduler.enter(sequence)
        return sequence

    def score(
        self, tokens: List[int], start: int, top: int | None = None, adapter: str | None = None
    ) -> ScoredSequence:
        """Let a sequence take part in the passes that has its tokens from `start` on scored, at least 1, beside the
        `top` likeliest ones. Raises as `check_scored` does.
        """
        self.check_scored(tokens, start)
        sequence = ScoredSequence(
            prompt=list(tokens),
            sampler=Sampler(SamplingRule(temperature=0), 0, self._kernels),
            max_tokens=0,
            stop_ids=frozenset(),
            cache=self.memory.new_cache(adapter=adapter),
            top_logprobs=top or 0,
            start=start,
        )
        self.scheduler.enter(sequence)
        return sequence

    @property
    def speculator(self) -> Speculator:
        """Guesses tokens."""
        return self.scheduler.speculator

    @speculator.setter
    def speculator(self, speculator: Speculator) -> None:
        self.scheduler.speculator = speculator

    @property
    def busy(self) -> bool:
        """Whether there is anything left to compute."""
        return any(s.finish_reason is None for s in self.scheduler.all)

    def cancel(self, sequence: Sequence, reason: str = "stop") -> None:
        """Take a sequence out of the passes, ended for `reason` unless it had ended already, and free its cache."""
        self.scheduler.leave(sequence, reason)
        self.chain.settle()

    def make_room_beside(self, nbytes: int) -> None:
        """Make room in this process beside everything that is there, until the next pass. Raises MemoryCeilingError."""
        self.memory.make_room_beside(nbytes)
        self.chain.settle()  # what was kept of sequences may have given way

    def step(self) -> PassStats:
        """One pass for all active sequences: each goes on by a chunk of its prompt or by a token.

        Where a stage is lost with its keys and values, they are computed anew, and what comes is what would have come.

        Ended sequences have left, and their caches are free. Raises ReadError and MemoryCeilingError; the caches then
        hold what was committed before. A sequence whose own part of the pass raises ends with that as its error: a
        NumericsError where its logits are not finite, a MemoryCeilingError where it has no room even by itself, an
        InternalError, which has its cause, for what nobody expects. Where none is left to go on the pass has no rows.
        """
        return self.enduring(self._step)

    def enduring(self, work: Callable[[], T]) -> T:
        """What `work` gives, which begins anew with empty caches where a stage is lost. Raises StageLostError where
        MOST_LOSSES follow one another, or where none can take its place."""
        losses = 0
        while True:
            try:
                return work()
            except StageLostError as lost:
                losses += 1
                if losses == MOST_LOSSES:
                    raise
                self.start_over(lost)

    def start_over(self, lost: StageLostError) -> None:
        """Empty every cache, and have others take the place of stages that are lost. Raises StageLostError where there
        are none, as where all stages are in this process."""
        self.memory.caches.forget()
        if self.replace_lost is None:
            raise lost
        self.replace_lost()

    def _step(self) -> PassStats:
        begin = time.perf_counter()
        self.scheduler.admit(must=True)
        try:
            chunks, trees, parts, need, draft_seconds = self._gather()
            if not chunks:
                return PassStats(0, (), time.perf_counter() - begin, 0.0)
            logits, stats = self.chain.run_pass(Rows(parts), need)
        except BaseException:
            self.scheduler.not_computed()
            raise
        self.scheduler.computed()
        first = 0
        for chunk, part in zip(chunks, parts, strict=True):
            own = logits.part(first, first + len(part.wanted))
            first += len(part.wanted)
            with self.scheduler.own_work(chunk.sequence):
                self._take(chunk.sequence, chunk.tokens, trees.get(chunk.sequence), own)
        guesses = sum(tree.guesses for tree in trees.values())
        seconds = time.perf_counter() - begin
        stats = replace(stats, seconds=seconds, draft_seconds=draft_seconds, guesses=guesses)
        self.speculator.learn_pass(stats, self.chain.streamed_bytes)
        for chunk in chunks:
            with self.scheduler.own_work(chunk.sequence):
                if self.scheduler.stored is not None:  # before anything is told: from then on a kill costs nothing
                    self.scheduler.stored.keep(chunk.sequence)
                chunk.sequence.after_pass(stats)
        return stats

    def _gather(self) -> tuple[list[Chunk], dict[Sequence, Tree], list[SequenceRows], Need | None, float]:
        """What the next pass computes: chunks, trees of guesses, the rows of each chunk; what it needs that no room was
        made for yet; and the seconds of guessing.

        Where one fails, all begin anew: others may have been about to share what it was to compute.
        """
        while True:
            chunks = self.scheduler.chunks()
            begin = time.perf_counter()
            trees = self._guess(chunks)
            draft_seconds = (time.perf_counter() - begin) * bool(trees)
            need = None if trees or not chunks else self._need(chunks)
            parts = []
            for chunk in chunks:
                if chunk.sequence.error is not None:
                    break
                with self.scheduler.own_work(chunk.sequence):
                    parts.append(chunk.sequence.rows(chunk.tokens, trees.get(chunk.sequence), chunk.last))
            if all(chunk.sequence.error is None for chunk in chunks):
                return chunks, trees, parts, need, draft_seconds
            self.scheduler.not_computed()

    def _need(self, chunks: List[Chunk], guesses: int = 0, logits: bool = True) -> Need:
        """Of a pass over these chunks; `logits`: whether all are wanted of guesses. Raises MemoryCeilingError."""
        rows = sum(len(chunk.tokens) for chunk in chunks)
        drawing = sum((bool(guesses) or chunk.last) and not chunk.sequence.scores for chunk in chunks)
        scored = sum(chunk.sequence.scored_rows(len(chunk.tokens)) for chunk in chunks)
        return self.memory.need(_slots(chunks), rows, drawing, guesses, logits=logits, scored_rows=scored)

    def _guess(self, chunks: List[Chunk]) -> dict[Sequence, Tree]:
        """Trees for those sequences of a pass whose next token would be all that it brings."""
        if not self.speculator.drafters:
            return {}
        roots: dict[Sequence, Tree] = {}
        for chunk in chunks:
            with self.scheduler.own_work(chunk.sequence):
                if chunk.last and chunk.sequence.may_guess:
                    roots[chunk.sequence] = chunk.sequence.root()
        if not roots:
            return {}
        begin, rows = time.perf_counter(), sum(len(chunk.tokens) for chunk in chunks)
        logits = not all(sequence.takes_likeliest for sequence in roots)
        room = self.memory.most_guesses(_slots(chunks), rows, logits)
        most = min(self.speculator.most_nodes, self.scheduler.max_rows - rows, room)
        if most <= 0:
            return {}
        self.chain.make_room(self._need(chunks, most, logits))
        trees = self.speculator.guess([*roots.values()], rows - len(roots), most)
        nodes = sum(tree.guesses for tree in trees)
        self.chain.events.tell("draft", f"{nodes} guess{'es' * (nodes != 1)}", begin, time.perf_counter())
        return dict(zip(roots, trees, strict=True))

    def _take(self, sequence: Sequence, tokens: list[int], tree: Tree | None, logits: Logits) -> None:
        """What a pass told one sequence: draw as far as it goes, and commit what will be needed."""
        cache, before = sequence.cache, len(sequence.token_ids)
        # Drawn before committed: wherever Ctrl-C comes, what is not in the cache will be computed.
        if tree is None:
            sequence.take(logits)
            cache.truncate(cache.length + len(tokens))
            return
        nodes = walk(tree, lambda node: sequence.draw(logits.row(node - tree.tip)))
        cache.keep([node + cache.length for node in nodes])
        drawn = sequence.token_ids[before:]
        sequence.guesses.take(tree, drawn)
        self.speculator.learn(tree, nodes, drawn, logits.ranked())

    def check_scored(self, tokens: List[int], start: int) -> None:
        """Raise UsageError for fewer than two tokens, a start that leaves none to score, or a token that the model does
        not have; ContextError where the context has no room for all but the last; MemoryCeilingError where memory has
        none even for it alone."""
        check_tokens(tokens, self.chain.vocab_size)
        if not 1 <= start < len(tokens):
            raise UsageError(
                f"Of {len(tokens)} tokens, none can be scored from number {start} on.",
                "Give two tokens at least: the first has nothing before it that it could follow.",
            )
        if len(tokens) - 1 > self.context:
            raise ContextError(
                f"{len(tokens)} tokens are too many to be scored at once: the context is {self.context}.",
                "Give a stride, to have them scored in parts that overlap, or raise the context.",
            )
        self.memory.most_tokens([len(tokens)], 0, self.context, beside_others=False)


def _slots(chunks: List[Chunk]) -> dict[KvCache, int]:
    """How many slots each cache has after a pass over these chunks."""
    return {chunk.sequence.cache: chunk.sequence.cache.length + len(chunk.tokens) for chunk in chunks}
