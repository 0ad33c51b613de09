"""Chunks of packed files: read, checked and decoded, a run of them at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute import codec
from penstock.disk.files import aligned_buffer
from penstock.disk.in_order import in_order
from penstock.errors import ChecksumError, FormatError
from penstock.packed_format.layout import CHUNK_ALIGNMENT, padded
from penstock.packed_format.sources import READ_THREADS, READS_AHEAD
from penstock.packed_format.tensor import PACK_AGAIN
from penstock.strict_json import shown
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.compute.kernels import U8
    from penstock.disk.files import Extent, Files
    from penstock.packed_format.reader import PackedFile
    from penstock.packed_format.tensor import PackedTensor

RUN_BYTES = 4 << 20
"""Original bytes of the chunks that are worked on together."""

RUNS_AHEAD = 16
"""Runs that are worked on at once or wait for their turn, of 13 MiB of buffers at most, however many the threads."""


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks [begin, end) of a tensor."""

    tensor: PackedTensor
    begin: int
    end: int

    @property
    def rows(self) -> slice:
        step = self.tensor.rows_per_chunk
        return slice(self.begin * step, min(self.end * step, self.tensor.rows))

    @property
    def n_rows(self) -> int:
        rows = self.rows
        return int(rows.stop - rows.start)

    @property
    def original_begin(self) -> int:
        """Where the rows begin in the original file."""
        return self.tensor.original_begin + self.begin * self.tensor.rows_per_chunk * self.tensor.row_bytes

    @property
    def original_nbytes(self) -> int:
        return self.n_rows * self.tensor.row_bytes


@dataclass(frozen=True, slots=True, eq=False)
class RunData:
    """The stored bytes of a run; `coarse` is empty where the tensor is stored raw."""

    run: Run
    coarse: U8
    fine: U8

    def faults(self, chunk: int) -> Iterator[ChecksumError]:
        """One for each tier of a chunk of the run that is not what was written."""
        tensor, begin, end = self.run.tensor, self.run.begin, self.run.end
        try:
            if tensor.in_tiers:
                whole = tensor.coarse_extent(begin, end)
                tensor.check_coarse(chunk, _part(self.coarse, whole, tensor.coarse_extent(chunk, chunk + 1)))
        except ChecksumError as error:
            yield error
        try:
            whole = tensor.fine_extent(begin, end)
            tensor.check_fine(chunk, _part(self.fine, whole, tensor.fine_extent(chunk, chunk + 1)))
        except ChecksumError as error:
            yield error

    def original(self) -> U8:
        """The original bytes, U8 [original_nbytes]. Raises ChecksumError, FormatError."""
        for chunk in range(self.run.begin, self.run.end):
            for fault in self.faults(chunk):
                raise fault
        tensor, rows = self.run.tensor, self.run.rows
        if not tensor.in_tiers:
            return tensor.unpadded(self.run.begin, self.run.end, self.fine)
        n_rows = rows.stop - rows.start
        packed = tensor.packed_rows(self.run.begin, self.run.end, self.coarse, self.fine)
        out = page_array(self.run.original_nbytes)
        try:
            codec.decode(packed, 0, n_rows, out)
        except codec.MalformedRow as error:
            row = rows.start + error.row
            problem = f"{tensor.path}: tensor {shown(tensor.name)}, row {row:,} breaks the packed format: {error}"
            raise FormatError(problem, PACK_AGAIN) from error
        return out


def _part(data: U8, whole: Extent, part: Extent) -> U8:
    begin = part.offset - whole.offset
    return data[begin : begin + part.nbytes]


def runs(tensor: PackedTensor) -> Iterator[Run]:
    """All chunks of a tensor, in runs of about RUN_BYTES, padding included: it may be most of the smallest chunks."""
    step = max(1, RUN_BYTES // padded(tensor.chunk_bytes, CHUNK_ALIGNMENT))
    for begin in range(0, tensor.n_chunks, step):
        yield Run(tensor, begin, min(begin + step, tensor.n_chunks))


def original_bytes(file: PackedFile, files: Files, pool: ThreadPoolExecutor) -> Iterator[U8]:
    """All of the original file but its header, in order. Raises ReadError, FormatError."""
    tensors = sorted(file.tensors.values(), key=lambda tensor: tensor.original_begin)
    reads = (partial(read_run, files, run) for tensor in tensors for run in runs(tensor))
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="penstock-read") as readers:
        data = in_order(readers, reads, READS_AHEAD)
        yield from in_order(pool, (part.original for part in data), RUNS_AHEAD)


def read_run(files: Files, run: Run) -> RunData:
    """Read a run from the disk, unchecked. Raises ReadError."""
    coarse = np.zeros(0, np.uint8)
    if run.tensor.in_tiers:
        coarse = _read(files, run.tensor.coarse_extent(run.begin, run.end))
    return RunData(run, coarse, _read(files, run.tensor.fine_extent(run.begin, run.end)))


def _read(files: Files, extent: Extent) -> U8:
    return files.read(extent, aligned_buffer(extent.nbytes))


def same_bytes(a: U8, b: U8) -> bool:
    """Whether two runs of bytes are the same; by words, which is faster than byte by byte."""
    if a.nbytes != b.nbytes:
        return False
    whole = a.nbytes // 8 * 8
    words = np.array_equal(a[:whole].view(np.uint64), b[:whole].view(np.uint64))
    return words and np.array_equal(a[whole:], b[whole:])
