"""Who takes part in a pass, and with which tokens: admission, chunks of prompts, and what sequences have in common.

A sequence is admitted when the keys and values that it may come to need fit beside what was promised to the others;
until then it waits, in the order in which sequences came. Sequences that begin alike share blocks (memory/prefixes.py).
Where a sequence's own part of the work raises, whatever that is, it ends with that error, and the others go on; but
where a stage is lost, all have lost it.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from penstock.errors import InternalError, MemoryCeilingError, StageLostError
from penstock.memory.prefixes import Prefix, longest
from penstock.models.kv_cache import BLOCK_SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Sequence as List

    from penstock.engine.sequence import Sequence
    from penstock.engine.stored_prefixes import StoredPrefixes
    from penstock.memory.memory import Memory
    from penstock.speculate.speculator import Speculator

MAX_ROWS = 4096
"""Rows of one pass: prompts up to this length cost one pass over the disk."""


class Chunk(NamedTuple):
    """What a sequence computes in a pass: the next of its pending tokens."""

    sequence: Sequence
    tokens: list[int]
    last: bool
    """Whether it has no others, so that a token is drawn after them."""


class Scheduler:
    """The sequences of an engine."""

    def __init__(self, memory: Memory, speculator: Speculator, context: int, max_rows: int) -> None:
        """`speculator`: told of every sequence that has left; `context`: positions that a sequence may have;
        `max_rows`: of a pass."""
        self.active: list[Sequence] = []
        """Those that take part in passes."""
        self.waiting: deque[Sequence] = deque()
        """Those that will, in the order in which they came, as soon as their keys and values fit beside the others'."""
        self.room_for_prompts = False
        """Whether sequences wait, too, where memory would leave prompts only few rows a pass, and so many passes."""
        self.max_rows = max_rows
        self.speculator = speculator
        self.stored: StoredPrefixes | None = None
        """What earlier runs computed of prompts, where it is kept."""
        self._memory = memory
        self._context = context
        self._adopting: list[Sequence] = []
        """Those that share what the coming pass is to compute."""

    @property
    def all(self) -> list[Sequence]:
        return [*self.active, *self.waiting]

    @contextmanager
    def own_work(self, sequence: Sequence) -> Iterator[None]:
        """One sequence's part of the work: where it raises, the sequence ends with that, and the others go on. Raises
        StageLostError."""
        try:
            yield
        except StageLostError:
            raise
        except Exception as error:
            self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error; the first one counts."""
        sequence.error = sequence.error or InternalError.of(error)
        sequence.finish_reason = "error"
        self.leave(sequence)

    def enter(self, sequence: Sequence) -> None:
        """Let a sequence take part from now on, or as soon as there is room for it."""
        self.waiting.append(sequence)
        try:
            sequence.cached_tokens = self._tokens_there(sequence)
            self.admit()
        except BaseException:  # nobody has it, so nobody would ever end it
            self.leave(sequence)
            raise

    def leave(self, sequence: Sequence, reason: str = "stop") -> None:
        """Take a sequence out of the passes, ended for `reason` unless it had ended already, and free its cache.

        Its keys and values may be kept for sequences that begin alike; a cache that was lent goes back as it is.
        """
        sequence.finish_reason = sequence.finish_reason or reason
        try:
            self._free(sequence)
        except Exception:  # and not Ctrl-C, after which the next pass tries again
            self._remove(sequence)
            raise
        self._remove(sequence)

    def _free(self, sequence: Sequence) -> None:
        """Give back what a sequence has."""
        cache, caches = sequence.cache, self._memory.caches
        if sequence.error is None and not sequence.lent:
            caches.kept.keep(sequence.tokens, cache)
        cache.truncate(cache.length if sequence.lent else 0)
        caches.promise(cache, 0)
        self.speculator.forget(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.active = [s for s in self.active if s is not sequence]
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self, *, must: bool = False) -> None:
        """Let those that wait take part, in their order, as long as there is room, and those leave that have ended.

        `must`: where none takes part, the next one has to. Raises MemoryCeilingError where it cannot.
        """
        for ended in [s for s in self.all if s.finish_reason is not None]:
            self.leave(ended)
        if self._memory.pressed:
            self._memory.caches.kept.clear()
        self._renew_promises()
        while self.waiting:
            sequence = self.waiting[0]
            fits, shared = True, 0
            with self.own_work(sequence):
                shared = sequence.cache.n_blocks or sequence.expected_blocks(self.active)
                fits = self._has_room(sequence, shared)
            if sequence.error is not None:
                continue
            if not fits:
                if not must or self.active:
                    return
                self._require_room(sequence)
            adopted = sequence.cache.adopted if sequence.cache.n_blocks else shared
            self._memory.caches.promise(sequence.cache, sequence.most_slots, adopted)
            if sequence.top_logprobs is not None:
                self._memory.caches.tellers.add(sequence)
            self.active.append(self.waiting.popleft())

    def _has_room(self, sequence: Sequence, shared: int) -> bool:
        """Whether there is room for a sequence that shares so many blocks."""
        rows = self._prompt_rows(sequence, shared) if self.room_for_prompts else 0
        return self._memory.admits(sequence.most_slots, shared, rows, sequence.most_told_bytes)

    def _prompt_rows(self, sequence: Sequence, shared: int) -> int:
        """What the next pass would have to compute, if it could, with this sequence and those that take part."""
        rows = sum(len(s.prompt) + len(s.token_ids) - s.cache.length for s in (*self.active, sequence))
        return min(rows - shared * BLOCK_SLOTS, self.max_rows)

    def _require_room(self, sequence: Sequence) -> None:
        """End a sequence with a MemoryCeilingError, and raise it, where it does not fit even by itself."""
        try:
            self._memory.most_tokens([len(sequence.prompt)], sequence.max_tokens, self._context)
        except MemoryCeilingError as error:
            self._fail(sequence, error)
            raise

    def _renew_promises(self) -> None:
        """What each may come to need, now that others have come, computed what they share, or left."""
        if not self.waiting:
            return
        active = self.active
        for index, s in enumerate(active):
            with self.own_work(s):
                shared = s.cache.adopted if s.cache.own_blocks else s.expected_blocks(active[:index])
                self._memory.caches.promise(s.cache, s.most_slots, shared)

    def chunks(self) -> list[Chunk]:
        """What each sequence computes in the next pass, the shortest first, as far as the rows go."""
        pending: dict[Sequence, int] = {}
        for sequence in self.active:
            with self.own_work(sequence):
                pending[sequence] = len(sequence.pending)
        left = self._most_rows(pending)
        chunks: list[Chunk] = []
        for sequence in sorted(pending, key=lambda s: pending[s]):
            if not left:
                break
            with self.own_work(sequence):
                if sequence.cache.own_blocks or self._begin(sequence, pending, chunks):
                    waiting = sequence.pending
                    chunks.append(Chunk(sequence, waiting[:left], len(waiting) <= left))
                    left -= len(chunks[-1].tokens)
        return chunks

    def computed(self) -> None:
        """The pass has computed what sequences came to share in it."""
        self._adopting.clear()

    def not_computed(self) -> None:
        """The pass has not: those that were to share it begin anew."""
        for sequence in self._adopting:
            sequence.cache.truncate(0)
        self._adopting.clear()

    def _begin(self, sequence: Sequence, pending: Mapping[Sequence, int], chunks: List[Chunk]) -> bool:
        """Take over what others have in common with it, or compute in this very pass. False where it had better wait,
        since one that is amid its prompt will come to have more of it."""
        cache = sequence.cache
        if sequence.lent and cache.length:
            return True
        prefix, blocks = longest(self._prefixes(sequence, chunks), sequence.adoptable, cache.adapter)
        stored = 0 if self.stored is None else self.stored.count(sequence)
        amid = [s for s, count in pending.items() if s.cache.own_blocks and count > 1]
        if sequence.expected_blocks(amid) > max(blocks, cache.adopted, stored):
            return False
        if prefix is not None and blocks > cache.adopted:
            self._adopting.append(sequence)
            prefix.cache.reserve(blocks * BLOCK_SLOTS)
            cache.adopt(prefix.cache, blocks)
            self._memory.caches.kept.touch(prefix)
        if self.stored is not None and stored > cache.adopted:
            self.stored.load(sequence, stored)
        # What came beside it or after it, as choices of its request do, was not there.
        sequence.cached_tokens = min(cache.length, sequence.cached_tokens)
        return True

    def _tokens_there(self, sequence: Sequence) -> int:
        """How many of a prompt's first tokens need not be computed, in memory or on the disk."""
        if sequence.cache.length:  # its caller's, which has them of its own
            return 0
        _, blocks = longest(self._prefixes(sequence, ()), sequence.adoptable, sequence.cache.adapter)
        stored = 0 if self.stored is None else self.stored.count(sequence)
        return min(max(blocks, stored) * BLOCK_SLOTS, len(sequence.prompt))

    def _prefixes(self, sequence: Sequence, chunks: List[Chunk]) -> Iterator[Prefix]:
        """What every other sequence will have computed when this pass comes to the rows of `sequence`; what a lent
        cache has may come from a file, so it is for its owner alone."""
        coming = {chunk.sequence: len(chunk.tokens) for chunk in chunks}
        for s in self.active:
            length = s.cache.length + coming.get(s, 0)
            if s is not sequence and not s.lent and length >= BLOCK_SLOTS:
                yield Prefix(s.tokens, s.cache, length)
        yield from self._memory.caches.kept

    def _most_rows(self, pending: Mapping[Sequence, int]) -> int:
        """The rows of a pass for sequences with so many pending tokens."""
        rows = {s.cache: min(count, self.max_rows) for s, count in pending.items()}
        slots = {cache: cache.length + count for cache, count in rows.items()}
        wanted = min(self.max_rows, sum(rows.values()))
        scored = any(s.scores for s in pending)
        logit_rows = sum(not s.scores for s in pending)
        return min(self.max_rows, self._memory.most_rows(slots, logit_rows, wanted=wanted, scored=scored))
