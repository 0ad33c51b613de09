"""A head in two stages: the coarse tier picks a few tokens, whose exact rows are read one by one.

What a coarse head gets wrong is mostly the order of the best few. Their rows are small random reads, and the same
tokens come again and again, so some are kept. Nothing checks what is read: it only orders guesses.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute import codec
from penstock.disk.files import Extent
from penstock.packed_format.tensor import PackedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.compute.kernels import F32, I64, U8, Kernels
    from penstock.weights.pieces import CoarseBytes
    from penstock.weights.weights import Weights

READS = 8
"""Rows that are read at once."""
KEPT_BYTES = 8 << 20


def exact_rows(weights: Weights, name: str, kernels: Kernels, finish: Callable[[F32], None]) -> ExactRows | None:
    """The exact rows of a matrix; None where it is not packed in two tiers."""
    tensor = weights.tensors[name]
    return ExactRows(weights, name, kernels, finish) if tensor.in_tiers else None


class ExactRows:
    """Exact rows of a packed matrix whose coarse tier is in memory."""

    def __init__(self, weights: Weights, name: str, kernels: Kernels, finish: Callable[[F32], None]) -> None:
        """`finish` makes logits of products, in place."""
        tensor = weights.tensors[name]
        if not isinstance(tensor, PackedTensor) or not tensor.in_tiers:
            raise ValueError(f"{name} is not packed in two tiers")
        self._weights = weights
        self._tensor = tensor
        self._kernels = kernels
        self._finish = finish
        self._threads = ThreadPoolExecutor(READS, thread_name_prefix="penstock-row")
        self._offsets: dict[int, U8] = {}
        self._kept: OrderedDict[int, F32] = OrderedDict()
        self._most = max(64, KEPT_BYTES // (4 * tensor.cols))

    def refine(self, x: F32, tokens: I64, logits: F32) -> None:
        """Put exact logits of rows x[n, cols] in place of coarse ones, for tokens [n, m]."""
        wanted = np.unique(tokens)
        self._fetch([int(token) for token in wanted if int(token) not in self._kept])
        there = [token for token in wanted.tolist() if token in self._kept]
        if not there:
            return
        exact = x @ np.stack([self._kept[token] for token in there]).T
        self._finish(exact)
        column = {token: i for i, token in enumerate(there)}
        for row, own in enumerate(tokens.tolist()):
            for i, token in enumerate(own):
                if token in column:
                    logits[row, i] = exact[row, column[token]]
        for token in there:
            self._kept.move_to_end(token)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _fetch(self, tokens: list[int]) -> None:
        coarse = self._weights.draft(self._tensor.name)
        if not tokens or coarse is None:
            return
        pieces = [piece for piece in coarse if not hasattr(piece, "dtype")]
        rows = self._threads.map(lambda token: self._row(pieces, token), tokens)
        self._kept.update((token, row) for token, row in zip(tokens, rows, strict=True) if row is not None)

    def _row(self, pieces: list[CoarseBytes], token: int) -> F32 | None:
        """One row; None where its bytes mean nothing, or its coarse ones are not in memory."""
        coarse = _coarse_chunk(pieces, token)
        if coarse is None:
            return None
        tensor = self._tensor
        chunk, index = divmod(token, tensor.rows_per_chunk)
        count = tensor.rows_in_chunk(chunk)
        begin = tensor.fine_extent(chunk, chunk + 1).offset
        if chunk not in self._offsets:
            self._offsets[chunk] = self._read(begin, codec.row_offsets_bytes(count)).copy()
        offsets = self._offsets[chunk].view(np.uint32)
        first, last = codec.row_extent(offsets, index)
        if not 0 < first < last <= tensor.fine_nbytes(chunk):
            return None
        data = self._read(begin + first, last - first)
        packed = codec.single_row(coarse, count, tensor.cols, index, offsets, data)
        plain, row = np.empty(tensor.row_bytes, np.uint8), np.empty(tensor.cols, np.float32)
        try:
            codec.decode(packed, 0, 1, plain)
        except codec.MalformedRow:
            return None
        self._kernels.widen(plain, "BF16", row)
        return row

    def _read(self, offset: int, nbytes: int) -> U8:
        return self._weights.read_single(Extent(self._tensor.path, offset, nbytes))


def _coarse_chunk(pieces: list[CoarseBytes], row: int) -> U8 | None:
    """The coarse chunk that has a row, and what follows it; None where it is not there."""
    piece = next((piece for piece in pieces if piece.rows.start <= row < piece.rows.stop), None)
    if piece is None:
        return None
    chunk = (row - piece.rows.start) // piece.rows_per_chunk
    return piece.bytes[chunk * codec.coarse_bytes(piece.rows_per_chunk, piece.cols) :]
