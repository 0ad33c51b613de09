"""The weights of a model as a pass meets them: piece after piece, resident or streamed from disk.

A piece is a run of rows of one matrix, small enough that a ring of a few of them fits any ceiling. Its parts, the
coarse and the fine tier where it is packed, are the unit of reading and of residency; the model walks the pieces in the
order that it declared (`order`).
"""

from __future__ import annotations

import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from penstock.disk.files import Files, aligned_buffer
from penstock.disk.reader import ReadAhead, ReadTotals
from penstock.errors import UsageError
from penstock.events import Events
from penstock.system.pages import page_array
from penstock.weights.experts import ExpertResidency
from penstock.weights.parts import Part, draft_ranks, priority
from penstock.weights.pieces import largest_chunk, split
from penstock.weights.stored_rows import row_reader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, I64, U8, Kernels
    from penstock.disk.files import Extent
    from penstock.disk.reader import Ring
    from penstock.weights.pieces import CoarseBytes, Piece, PieceData, PlainData, StoredData

SCAN_SHARE = 0.95
"""Where a layer needs so much of its experts, all of the next layer's are read ahead."""
ROW_READS = 8
"""Embedding rows that are read at once."""


class Weights:
    """Matrices by pieces, in pass order; embedding rows one by one; vectors whole.

    `order` names the matrices as a pass uses them.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        order: Sequence[str],
        kernels: Kernels,
        ring: Ring,
        events: Events | None = None,
        draft_order: Sequence[str] = (),
        experts: Sequence[Sequence[Sequence[str]]] = (),
        expert_share: float = 1.0,
        first: Sequence[str] = (),
    ) -> None:
        """None of the pieces stay in memory, until `limit_resident` says how many may. `draft_order`: matrices that
        guesses are made with, those first that they need most; without any, nothing is kept for guesses alone. One that
        comes twice is needed first in its common rows (residency.py), and later in the others. `experts`: of each layer
        that has some, the matrices of each, which are beside each other in `order`; they are read when they are told to
        be needed (`expect`), as a row needs `expert_share` of them. `first`: matrices that stay in memory before others
        do."""
        self.tensors = tensors
        self._kernels = kernels
        self.events = events or Events()
        pieces = [piece for name in order for piece in split(tensors[name], ring.piece_bytes)]
        self._parts = [Part(piece, i) for piece in pieces for i in range(len(piece.extents))]
        self._by_name: dict[str, list[list[int]]] = {}
        for index, part in enumerate(self._parts):
            of_tensor = self._by_name.setdefault(part.piece.name, [])
            of_tensor[-1].append(index) if part.index else of_tensor.append([index])
        self.draft_names = tuple(dict.fromkeys(draft_order))
        self._draft, self._spare_draft = draft_ranks(self._parts, draft_order)
        """Parts that guesses are made with, and how much they are needed: the lower the more; those of them that a
        matrix can do without."""
        self.draft_changes = 0
        """Grows whenever parts that guesses are made with come into memory or leave it."""
        ranges = [[self._range_of(names) for names in layer] for layer in experts]
        self._experts = ExpertResidency(ranges, [part.nbytes for part in self._parts])
        self._of_experts = {index for layer in ranges for parts in layer for index in parts}
        self.expert_bytes = sum(self._parts[index].nbytes for index in self._of_experts)
        self._expert_share = expert_share
        self.experts_needed = self.experts_read = 0
        """Running totals: each expert of a layer counts in every pass that needs it."""
        self._scanning = False
        self._priority = priority(self._parts, self._draft, self._of_experts, first)
        self._ends = [*accumulate(self._parts[index].nbytes for index in self._priority)]
        self._resident: dict[int, U8] = {}
        self._indexed: dict[int, PieceData] = {}
        """Pieces in indexed rows, by their first part."""
        self._in_memory: set[int] = set()
        """Parts that are, in whatever form."""
        self._indexing = False
        self._budget = self._held = 0
        """Bytes of pieces that there may be in memory, and that there are."""
        self._not_indexed = {i for i, part in enumerate(self._parts) if not part.piece.likely_indexed_bytes}
        """What is kept as it is beside indexed rows."""
        self.indexed_bytes = self._likely_indexed_bytes(pieces)
        """What all pieces together likely take where those that can be are kept in indexed rows; 0 where none can."""
        self._files = Files()
        self._keep: set[int] = set()
        self._stream = self._new_reader(ring)
        self._closed = False
        self.largest_chunk = largest_chunk([tensors[name] for name in order])
        """Bytes of the largest part that cannot be cut."""
        self.pass_bytes = sum(part.nbytes for part in self._parts)
        self._stale = False
        """Whether the reader's sequence has what is in memory by now."""
        self._away = [self.pass_bytes - self.expert_bytes, self.expert_bytes]
        """Bytes that are not in memory, of what every pass needs and of experts."""
        self._follow()

    def _new_reader(self, ring: Ring) -> ReadAhead:
        """With room for the parts of a piece, held together, and one more; in either lane, where there are two."""
        least = 1 + max((part.index + 1 for part in self._parts), default=0)
        lanes = 2 if self._of_experts else 1
        return ReadAhead(
            self._files,
            [part.extent for part in self._parts],
            self._in_memory.__contains__,
            max(ring.depth, least * lanes),
            self._read_done,
            ring.reads,
            keep=self._place_of,
            demanded=least * (lanes - 1),
        )

    @property
    def totals(self) -> ReadTotals:
        """Running totals of the streamed pieces."""
        return self._stream.totals

    @property
    def ring_bytes(self) -> int:
        return self._stream.ring_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pieces that are held in memory now."""
        return self._held

    @property
    def streamed_bytes(self) -> int:
        """Bytes that the next pass would read; of experts, those of one row, if any is needed as often."""
        of_all, of_experts = self._away
        return of_all + int(of_experts * self._expert_share)

    def prefetch(self) -> tuple[int, float]:
        """Fill the reader's ring with what the next pass streams first: bytes that came, and seconds they took.

        Raises UsageError where the model was closed.
        """
        self._check_open()
        return self._stream.fill()

    def limit_resident(self, budget: int) -> None:
        """Keep at most `budget` bytes of pieces in memory; they are kept as the next pass reads them.

        Where that is enough for all of a packed model in indexed rows, they are kept so.
        """
        self._budget = budget
        indexing = 0 < self.indexed_bytes <= budget
        keep = (
            self._not_indexed | self._draft.keys()
            if indexing
            else set(self._priority[: bisect_right(self._ends, budget)])
        )
        if indexing != self._indexing or keep != self._keep:
            self._indexing, self._keep = indexing, keep
            self.draft_changes += 1
            for index in self._resident.keys() - self._keep - self._of_experts:
                del self._resident[index]
            self._indexed.clear()
            for index in self._experts.recall():
                self._resident.pop(index, None)
            self._in_memory.clear()
            self._held = sum(data.nbytes for data in self._resident.values())
            self._stale = True
            self._away = [self.pass_bytes - self.expert_bytes, self.expert_bytes]
            self._note(self._resident)
        if self._of_experts:
            kept = sum(self._parts[index].nbytes for index in keep)
            self._forget(self._experts.limit(budget - kept))
        if self._stale:
            self._follow()

    def expect(self, names: Sequence[str]) -> None:
        """Told of all matrices of experts that a layer needs, in the order in which their pieces will be asked for:
        those that are not in memory are read now. Where nearly all are, so will the next layers', and these are read
        ahead."""
        wanted = [index for name in names for indices in self._by_name[name] for index in indices]
        scanning = len(wanted) >= SCAN_SHARE * self._experts.parts_beside(wanted[0])
        if scanning != self._scanning:
            self._scanning = scanning
            self._follow()
        away = [index for index in wanted if index not in self._in_memory]
        self.experts_needed += self._experts.count(wanted)
        self.experts_read += self._experts.count(away)
        if scanning and self._stream.is_ahead(away):
            away = []  # they come in their turn
        else:
            self._forget(self._experts.use(wanted))  # none of these
        self._stream.demand(away)

    def _note(self, indices: Iterable[int]) -> None:
        """These parts are in memory now."""
        for index in {*indices} - self._in_memory:
            of_experts = index in self._of_experts
            self._in_memory.add(index)
            self._away[of_experts] -= self._parts[index].nbytes
            self._stale |= not of_experts

    def _forget(self, indices: Iterable[int]) -> None:
        """These parts of experts are not any more."""
        for index in indices:
            if (data := self._resident.pop(index, None)) is not None:
                self.draft_changes += index in self._draft
                self._held -= data.nbytes
                self._in_memory.discard(index)
                self._away[1] += self._parts[index].nbytes

    def _follow(self) -> None:
        """Have the reader run ahead over what every pass takes and is not in memory."""
        self._stale = False
        away = self._in_memory if self._scanning else self._in_memory | self._of_experts
        self._stream.follow([index for index in range(len(self._parts)) if index not in away])

    def _place_of(self, index: int) -> U8 | None:
        """Where a part is read that stays in memory."""
        if index in self._keep:
            return aligned_buffer(self._parts[index].nbytes)
        return self._experts.buffer(index) if index in self._of_experts else None

    def _range_of(self, names: Sequence[str]) -> range:
        """The parts of matrices that are beside each other."""
        indices = [index for name in names for of_piece in self._by_name[name] for index in of_piece]
        return range(indices[0], indices[-1] + 1)

    def pieces(self, name: str) -> Generator[PieceData]:
        """The pieces of a matrix, in order; each is valid until the next one is asked for. Raises ReadError."""
        for indices in self._by_name[name]:
            if (indexed := self._indexed.get(indices[0])) is not None:
                yield indexed
                continue
            # Those of experts once they are needed again: it takes ten times as long as to multiply one row.
            indexes = self._indexing and indices[0] not in self._not_indexed
            indexes = indexes and (indices[0] not in self._of_experts or self._in_memory.issuperset(indices))
            with ExitStack() as stack:
                parts = [stack.enter_context(self._data(index)) for index in indices]
                piece = self._parts[indices[0]].piece
                yield self._index(indices, piece, parts) if indexes else piece.loaded(parts)

    def stored(self, name: str) -> Generator[StoredData]:
        """As `pieces`, read anew and in the form that the checkpoint has them."""
        for indices in self._by_name[name]:
            with ExitStack() as stack:
                parts = [stack.enter_context(self._data(index)) for index in indices]
                yield self._parts[indices[0]].piece.loaded(parts)

    def vectors(self) -> dict[str, F32]:
        """All tensors of one dimension, which are small."""
        return {name: self.vector(name) for name, tensor in self.tensors.items() if len(tensor.shape) == 1}

    def vector(self, name: str) -> F32:
        """A whole vector (norm weights, a bias), float32 [n]."""
        tensor = self.tensors[name]
        raw = self._stored_rows(tensor, np.zeros(1, np.int64)).reshape(-1)
        out = np.empty(tensor.n_elements, np.float32)
        self._kernels.widen(raw, tensor.dtype.value, out)
        return out

    def rows(self, name: str, indices: I64) -> F32:
        """The given rows of a matrix, float32 [len(indices), k], each read by itself, equal ones once.

        Every pass begins with this one, so here it shows that the model was closed: raises UsageError.
        """
        self._check_open()
        self._stream.recover()
        tensor, begin = self.tensors[name], time.perf_counter()
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = self._stored_rows(tensor, unique)
        end = time.perf_counter()
        self.totals.count(0, end - begin, end - begin)  # some KB, which are no part of what a pass streams
        self.events.tell("wait", tensor.name, begin, end, rows.nbytes)
        out = np.empty((len(unique), tensor.shape[1]), np.float32)
        self._kernels.widen(rows.reshape(-1), tensor.dtype.value, out.reshape(-1))
        return out[inverse]

    def _likely_indexed_bytes(self, pieces: Sequence[Piece]) -> int:
        indexed = sum(piece.likely_indexed_bytes for piece in pieces)
        beside = sum(self._parts[i].nbytes for i in self._not_indexed | self._draft.keys())
        return indexed + beside if indexed else 0

    @property
    def draft_bytes(self) -> int:
        """What all that guesses are made with takes; 0 where there is nothing of the kind."""
        return sum(self._parts[index].nbytes for index in self._draft)

    def read_single(self, extent: Extent) -> U8:
        """Some bytes of a file, read by themselves and not checked: for guesses. Raises ReadError."""
        return self._files.read(extent, aligned_buffer(extent.nbytes))

    @property
    def least_draft_bytes(self) -> int:
        """The same without what can be done without."""
        return sum(self._parts[index].nbytes for index in self._draft.keys() - self._spare_draft)

    def draft(self, name: str) -> list[CoarseBytes | PlainData] | None:
        """What is in memory of a matrix to guess with, in order; None where some of it is not that is needed."""
        indices = [of_piece[0] for of_piece in self._by_name[name]]
        there = [index for index in indices if index in self._draft and index in self._resident]
        if not self._spare_draft.issuperset(set(indices).difference(there)):
            return None
        return [self._parts[index].piece.draft(self._resident[index]) for index in there]

    def _index(self, indices: Sequence[int], piece: Piece, parts: Sequence[U8]) -> PieceData:
        """The piece in indexed rows, which stay in memory."""
        data = piece.indexed(parts, self._kernels)
        self._indexed[indices[0]] = data
        self._held += data.nbytes
        if indices[0] in self._of_experts:
            self._forget(self._experts.release(indices))
        self._note(indices)
        if self.resident_bytes > self._budget:  # exponents that vary more than any trained model's
            self.indexed_bytes = 0
            self.limit_resident(self._budget)
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("This model has been closed.", "Open it again.")

    def close(self) -> None:
        self._closed = True
        self._stream.close()
        self._files.close()
        self._resident.clear()
        self._indexed.clear()
        self._held = 0

    @contextmanager
    def _data(self, index: int) -> Iterator[U8]:
        if (resident := self._resident.get(index)) is not None:
            yield resident
            return
        begin, name = time.perf_counter(), self._parts[index].piece.name
        data = self._stream.take(index)
        try:
            self.events.tell("wait", name, begin, time.perf_counter(), data.nbytes)
            if index in self._keep or self._experts.arrived(index, data):
                self._resident[index] = _copy(data) if self._stream.in_ring(data) else data
                self.draft_changes += index in self._draft
                self._held += data.nbytes
                self._note([index])
            yield data
        except BaseException:
            # A walk that was dropped may be closed by the garbage collector, even amid the start of another read.
            self._stream.give_back(data, read_on=False)
            raise
        self._stream.give_back(data)

    def _stored_rows(self, tensor: Tensor, rows: I64) -> U8:
        """The given rows as the original checkpoint has them, uint8 [len(rows), bytes of a row], several read at once.

        A vector is one row. Raises ReadError, FormatError.
        """
        reader = row_reader(tensor, self._files)
        out = np.empty((len(rows), reader.row_bytes), np.uint8)
        batches = reader.batches(rows)
        if len(batches) == 1:
            reader.read(rows, batches[0], out)
        elif batches:
            with ThreadPoolExecutor(ROW_READS, thread_name_prefix="penstock-row") as threads:
                list(threads.map(lambda batch: reader.read(rows, batch, out), batches))
        return out

    def _read_done(self, index: int, data: U8, begin: float, end: float) -> None:
        """In a reading thread: a part has come."""
        part = self._parts[index]
        part.piece.check(part.index, data)
        self.events.tell("read", part.piece.name, begin, end, part.nbytes)


def _copy(data: U8) -> U8:
    """A copy in pages of its own: a heap would not give them back one by one."""
    copy = page_array(data.nbytes)
    copy[:] = data
    return copy
