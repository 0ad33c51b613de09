"""One safetensors file, packed as it streams by.

What comes out depends on the original bytes alone, not on where they come from, on threads, or on how often it was
begun: chunks are encoded by many threads and written in their order. Each is decoded again and compared before it is
written. A journal beside the unfinished file tells which chunks are on the disk; after an interruption those whose
hashes still match are kept.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import xxhash

from penstock import codec, packed
from penstock.errors import PenstockError, ReadError
from penstock.files import Extent, Files, aligned_buffer
from penstock.format import parse_header
from penstock.in_order import in_order
from penstock.layout import canonical_name
from penstock.new_files import SYNC_BYTES, give_name, settle
from penstock.packed import CHUNK_ALIGNMENT, RECORD, STREAM_ALIGNMENT, coarse_stream_bytes, cut, fine_suffix, padded
from penstock.packed_chunks import RUN_BYTES, Run, read_run, runs, same_bytes
from penstock.pages import page_array
from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import numpy.typing as npt

    from penstock.format import Header, TensorInfo
    from penstock.kernels import U8
    from penstock.packed import Cut

RUNS_AHEAD = 16
"""Runs of chunks, of some 12 MiB of buffers each, that are encoded or wait for the disk, whatever the threads."""

_LARGEST = 10**15  # what the header has room for in place of each number, so that its size is known beforehand


class Source(Protocol):
    """One original safetensors file, wherever it is."""

    @property
    def name(self) -> str:
        """Its path, relative to the checkpoint."""

    @property
    def size(self) -> int:
        """Of the whole file, bytes."""

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        """The bytes of each (begin, nbytes), in this order, read ahead as the source sees fit.

        Each array is the receiver's to keep. Raises ReadError, or another PenstockError.
        """


class LocalSource:
    """A file on a disk of this machine, read past the page cache."""

    def __init__(self, path: Path, name: str, files: Files, pool: ThreadPoolExecutor) -> None:
        """`pool`: threads that read."""
        self.name = name
        self.size = path.stat().st_size
        self._path, self._files, self._pool = path, files, pool

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        return in_order(self._pool, (partial(self._read, begin, nbytes) for begin, nbytes in ranges), READS_AHEAD)

    def header(self) -> bytes:
        """The file's first bytes: length, header, padding."""
        length = int.from_bytes(self._read(0, 8), "little")
        return self._read(0, 8 + length).tobytes()

    def _read(self, begin: int, nbytes: int) -> U8:
        return self._files.read(Extent(self._path, begin, nbytes), aligned_buffer(nbytes))


READS_AHEAD = 6


@dataclass(frozen=True)
class PassOrder:
    """When a pass uses each tensor: `ranks` has canonical names, whose `prefix` the file's names may lack."""

    prefix: str
    ranks: Mapping[str, int]

    def rank(self, name: str) -> int:
        return self.ranks.get(self.canonical(name), len(self.ranks))

    def canonical(self, name: str) -> str:
        return canonical_name(name, self.prefix)


@dataclass(frozen=True)
class _Planned:
    """A tensor of the original file, and how it is going to be cut."""

    tensor: TensorInfo
    how: Cut
    rows_per_chunk: int

    @property
    def n_chunks(self) -> int:
        return self.how.n_chunks(self.rows_per_chunk)

    @property
    def chunk_bytes(self) -> int:
        """Of all chunks but the last, in the original file."""
        return self.rows_per_chunk * self.how.row_bytes

    @property
    def coarse_nbytes(self) -> int:
        if self.how.codec == "raw":
            return 0
        return coarse_stream_bytes(self.how.rows, self.how.cols, self.rows_per_chunk)

    def n_rows(self, chunk: int) -> int:
        return min(self.rows_per_chunk, self.how.rows - chunk * self.rows_per_chunk)


@dataclass(frozen=True)
class _Run:
    """Chunks [begin, end) that are encoded together."""

    planned: _Planned
    begin: int
    end: int

    @property
    def range(self) -> tuple[int, int]:
        """Begin and size in the original file."""
        begin = self.begin * self.planned.chunk_bytes
        end = min(self.end * self.planned.chunk_bytes, self.planned.tensor.nbytes)
        return self.planned.tensor.begin + begin, end - begin


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A run's chunks, one after the other; behind the last one both arrays have room for a stream's padding."""

    run: _Run
    coarse: U8
    fine: U8
    fine_sizes: list[int]


def pack_file(
    source: Source,
    header: bytes,
    target: Path,
    unfinished: Path,
    order: PassOrder,
    pool: ThreadPoolExecutor,
    on_bytes: Callable[[int], None],
) -> None:
    """Pack `source`, whose first bytes are `header`, into the file `target`, by way of `unfinished`.

    Where a former call left `unfinished` and its journal behind, this one goes on from there. `on_bytes` is told how
    many bytes of the original more are done. Raises FormatError for a header that lies, ReadError, and OSError where
    the disk is full or fails.
    """
    original = parse_header(header, target, source.size)
    journal = unfinished.with_name(f"{unfinished.name}.journal")
    unfinished.touch()
    with unfinished.open("r+b", buffering=0) as file, _Journal(journal) as records:
        writer = _Writer(file, unfinished, records, original, order)
        writer.resume(pool)
        on_bytes(original.data_begin + writer.original_done)
        ahead = [*writer.remaining()]
        data = source.ranges([run.range for run in ahead])
        jobs = (partial(_encode, run, next(data), source.name) for run in ahead)
        for encoded in in_order(pool, jobs, RUNS_AHEAD):
            writer.write(encoded)
            on_bytes(encoded.run.range[1])
        writer.finish(header[: original.data_begin])
    give_name(unfinished, target)
    journal.unlink()


def plan(header: Header, order: PassOrder) -> list[_Planned]:
    """The tensors in the order of the packed file: matrices as a pass uses them, then the others as they come."""
    planned = []
    for tensor in header.tensors.values():
        how = cut(tensor)
        planned.append(_Planned(tensor, how, how.rows_per_chunk(order.canonical(tensor.name))))
    planned.sort(key=lambda one: (1, 0) if one.how.codec == "raw" else (0, order.rank(one.tensor.name)))
    return planned


def _encode(run: _Run, data: U8, source: str) -> _Encoded:
    return _pad(run, data) if run.planned.how.codec == "raw" else _to_planes(run, data, source)


def _pad(run: _Run, data: U8) -> _Encoded:
    """Chunks that are stored as they are."""
    step = run.planned.chunk_bytes
    sizes = [padded(min(step, len(data) - begin), CHUNK_ALIGNMENT) for begin in range(0, len(data), step)]
    out = np.zeros(sum(sizes), np.uint8)
    for i, end in enumerate(accumulate(sizes)):
        part = data[i * step : (i + 1) * step]
        out[end - sizes[i] : end - sizes[i] + len(part)] = part
    return _Encoded(run, np.zeros(0, np.uint8), out, sizes)


def _to_planes(run: _Run, data: U8, source: str) -> _Encoded:
    """Chunks in two tiers, which have been decoded again and compared."""
    cols, step = run.planned.how.cols, run.planned.rows_per_chunk
    rows = [run.planned.n_rows(chunk) for chunk in range(run.begin, run.end)]
    coarse = page_array(sum(codec.coarse_bytes(n, cols) for n in rows) + STREAM_ALIGNMENT)
    fine = page_array(sum(codec.most_fine_bytes(n, cols) for n in rows) + STREAM_ALIGNMENT)
    coarse_end, offsets = 0, [0]
    for i, n in enumerate(rows):
        begin = i * step * cols * 2
        weights = data[begin : begin + n * cols * 2]
        coarse_size = codec.coarse_bytes(n, cols)
        fine_size = codec.encode(weights, n, cols, coarse[coarse_end : coarse_end + coarse_size], fine[offsets[-1] :])
        coarse_end += coarse_size
        offsets.append(offsets[-1] + fine_size)
    again = page_array(len(data))
    tiers = codec.PackedRows(sum(rows), cols, step, coarse[:coarse_end], fine, np.array(offsets, np.int64))
    codec.decode(tiers, 0, sum(rows), again)
    if not same_bytes(again, data):
        problem = f"{source}: {shown(run.planned.tensor.name)} does not come back from its packed form as it was"
        raise PenstockError(problem, "This is a defect of Penstock. Nothing wrong was written. Please report it.")
    return _Encoded(run, coarse, fine, np.diff(offsets).tolist())


class _Journal:
    """The records of chunks that are on the disk, in the order of the file."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> npt.NDArray[np.void]:
        content = self._file.read()
        return np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)

    def cut(self, count: int) -> None:
        """Keep only the first `count`."""
        self._file.truncate(count * RECORD.itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, records: npt.NDArray[np.void]) -> None:
        _write_all(self._file, memoryview(records.tobytes()))


class _Writer:
    """Writes chunks, which come in order, to their places in the file."""

    def __init__(self, file: BinaryIO, path: Path, journal: _Journal, header: Header, order: PassOrder) -> None:
        self._file, self._path, self._journal = file, path, journal
        self._plan = plan(header, order)
        self._records = np.zeros(sum(planned.n_chunks for planned in self._plan), RECORD)
        self._done = self._journaled = 0
        """Chunks."""
        self._unsettled = 0
        """Bytes that may wait in the page cache."""
        self._streams: list[tuple[str, int, int]] = []
        """Name, begin and end of each in the file, as far as they are complete."""
        names = [stream for planned in self._plan for stream in _stream_names(planned)] + [*packed.SERVICE]
        self._position = self._data_begin = padded(
            8 + len(_header_json((name, _LARGEST, _LARGEST) for name in names)), STREAM_ALIGNMENT
        )
        """Where the next tensor begins."""
        self._current = 0
        """The index of the tensor that is being written, of which so many chunks and fine bytes are there."""
        self._chunks = self._fine_size = 0
        self.original_done = 0

    def resume(self, pool: ThreadPoolExecutor) -> None:
        """Take over what a former call has written and journaled, up to the first chunk that is not as it should be."""
        records = self._journal.read()[: len(self._records)]
        files = Files()
        try:
            for planned in self._plan:
                part = records[self._done : self._done + planned.n_chunks]
                good = self._sound(planned, part, pool, files)
                self._take(planned, part[:good])
                if good < planned.n_chunks:
                    break
        finally:
            files.close()
        self._journaled = self._done
        self._journal.cut(self._done)

    def remaining(self) -> Iterator[_Run]:
        """What has yet to be encoded."""
        begin = self._chunks
        for planned in self._plan[self._current :]:
            step = max(1, RUN_BYTES // planned.chunk_bytes)
            for first in range(begin, planned.n_chunks, step):
                yield _Run(planned, first, min(first + step, planned.n_chunks))
            begin = 0

    def write(self, encoded: _Encoded) -> None:
        """Write the next run."""
        run, planned = encoded.run, encoded.run.planned
        self._skip_empty()
        coarse_chunk = codec.coarse_bytes(planned.rows_per_chunk, planned.how.cols) if planned.coarse_nbytes else 0
        sizes, coarse_end = encoded.fine_sizes, coarse_chunk * (run.end - run.begin)
        if planned.coarse_nbytes and run.end == planned.n_chunks:
            coarse_end = planned.coarse_nbytes - coarse_chunk * run.begin
            end = sum(sizes)
            sizes[-1] += -(self._fine_size + end) % STREAM_ALIGNMENT
            encoded.fine[end : sum(sizes)] = 0
        records = np.zeros(len(sizes), RECORD)
        fine_begin = 0
        for i, size in enumerate(sizes):
            coarse_hash = 0
            if coarse_end:
                stop = coarse_end if i == len(sizes) - 1 else (i + 1) * coarse_chunk
                coarse_hash = xxhash.xxh3_64_intdigest(encoded.coarse[i * coarse_chunk : stop].data)
            records[i] = size, xxhash.xxh3_64_intdigest(encoded.fine[fine_begin : fine_begin + size].data), coarse_hash
            fine_begin += size
        self._write_at(self._position + run.begin * coarse_chunk, encoded.coarse[:coarse_end].data)
        self._write_at(self._position + planned.coarse_nbytes + self._fine_size, encoded.fine[:fine_begin].data)
        self._take(planned, records)
        if self._unsettled >= SYNC_BYTES:
            self._settle()

    def finish(self, header: bytes) -> None:
        """Write all that is not a stream; `header`: the first bytes of the original file."""
        self._skip_empty()
        tail = self._tail(header)
        begin = self._position
        for name, content in tail.items():
            self._streams.append((name, begin, begin + len(content)))
            begin += len(content)
        self._streams.append((packed.SEAL, begin, begin + packed.SEAL_BYTES))
        text = _header_json(
            (name, first - self._data_begin, end - self._data_begin) for name, first, end in self._streams
        )
        text = text.ljust(self._data_begin - 8)
        head = len(text).to_bytes(8, "little") + text
        content = b"".join(tail.values())
        self._write_at(0, memoryview(head))
        self._write_at(self._position, memoryview(content + packed.seal(head, content)))
        self._file.truncate(begin + packed.SEAL_BYTES)
        settle(self._file)

    def _tail(self, header: bytes) -> dict[str, bytes]:
        entries = [
            {
                "name": planned.tensor.name,
                "codec": planned.how.codec,
                "rows_per_chunk": planned.rows_per_chunk,
                "chunks": planned.n_chunks,
            }
            for planned in self._plan
        ]
        index = {"version": packed.VERSION, "header_bytes": len(header), "tensors": entries}
        contents = (header, self._records.tobytes(), json.dumps(index, separators=(",", ":")).encode())
        return {
            name: content.ljust(padded(len(content), CHUNK_ALIGNMENT), b" " if name == packed.INDEX else b"\0")
            for name, content in zip(packed.SERVICE, contents, strict=False)
        }

    def _sound(self, planned: _Planned, records: npt.NDArray[np.void], pool: ThreadPoolExecutor, files: Files) -> int:
        """How many of a tensor's first chunks are on the disk as their records say."""
        most = planned.how.most_fine_bytes(planned.rows_per_chunk)
        impossible = np.flatnonzero((records["fine_bytes"] == 0) | (records["fine_bytes"] > most))
        records = records[: impossible[0]] if impossible.size else records
        begin = self._position
        tensor = packed.place(
            planned.tensor, self._path, planned.rows_per_chunk, begin, begin + planned.coarse_nbytes, records
        )
        good = 0
        for sound, count in in_order(pool, (partial(_sound_chunks, files, run) for run in runs(tensor)), RUNS_AHEAD):
            good += sound
            if sound < count:
                break
        return good

    def _take(self, planned: _Planned, records: npt.NDArray[np.void]) -> None:
        """Count chunks of the current tensor that are in the file."""
        self._records[self._done : self._done + len(records)] = records
        self._done += len(records)
        self._chunks += len(records)
        self._fine_size += int(records["fine_bytes"].sum(dtype=np.int64))
        if self._chunks == planned.n_chunks:
            self._end_tensor(planned)

    def _skip_empty(self) -> None:
        """Tensors without bytes have no runs that would end them."""
        while self._current < len(self._plan) and not self._plan[self._current].n_chunks:
            self._end_tensor(self._plan[self._current])

    def _end_tensor(self, planned: _Planned) -> None:
        sizes = [planned.coarse_nbytes, self._fine_size][-len(_stream_names(planned)) :]
        for name, size in zip(_stream_names(planned), sizes, strict=True):
            self._streams.append((name, self._position, self._position + size))
            self._position += size
        self.original_done += planned.tensor.nbytes
        self._current += 1
        self._chunks = self._fine_size = 0

    def _write_at(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        _write_all(self._file, data)
        self._unsettled += data.nbytes

    def _settle(self) -> None:
        settle(self._file)
        self._journal.append(self._records[self._journaled : self._done])
        self._journaled, self._unsettled = self._done, 0


def _sound_chunks(files: Files, run: Run) -> tuple[int, int]:
    """How many of a run's first chunks are as their hashes say, and how many there are."""
    count = run.end - run.begin
    try:
        data = read_run(files, run)
    except ReadError:
        return 0, count
    damaged = (chunk - run.begin for chunk in range(run.begin, run.end) if any(data.faults(chunk)))
    return next(damaged, count), count


def _stream_names(planned: _Planned) -> list[str]:
    name, fine = planned.tensor.name, fine_suffix(planned.how.codec)
    return [f"{name}.coarse", f"{name}.{fine}"] if planned.how.codec == "planes" else [f"{name}.{fine}"]


def _header_json(streams: Iterable[tuple[str, int, int]]) -> bytes:
    """The safetensors header of streams by name, begin and end in the data, without length and padding."""
    entries: dict[str, object] = {"__metadata__": {"format": packed.FORMAT, "version": str(packed.VERSION)}}
    for name, begin, end in streams:
        shape = [end - begin if end < _LARGEST else _LARGEST]
        entries[name] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
    return json.dumps(entries, separators=(",", ":")).encode()


def _write_all(file: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
