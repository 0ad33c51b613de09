"""Writes a packed file, chunk after chunk, and takes up again what was interrupted.

A journal beside the file has the records of the chunks that are on the disk. Of what an earlier call has left, those
chunks are kept whose hashes are still what the journal says, up to the first that is not.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from penstock.disk.files import Files
from penstock.disk.in_order import in_order
from penstock.disk.new_files import SYNC_BYTES, settle
from penstock.errors import ReadError
from penstock.packed_format import reader
from penstock.packed_format.chunks import RUNS_AHEAD, Run, read_run, runs
from penstock.packed_format.layout import CHUNK_ALIGNMENT, STREAM_ALIGNMENT, padded, version_for
from penstock.packed_format.runs import plan
from penstock.packed_format.tensor import RECORD, ChunkTable, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path
    from typing import BinaryIO

    import numpy.typing as npt

    from penstock.packed_format.runs import Encoded, PackRun, PassOrder, Planned
    from penstock.safetensors_header import Header

    Records = npt.NDArray[np.void]

_LARGEST = 10**15
"""The header has room for numbers as long as this, so that the place of the data is known before their sizes are."""


class Journal:
    """The records of chunks that are on the disk, in the order of the file."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> Records:
        content = self._file.read()
        return np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)

    def cut(self, count: int) -> None:
        """Keep only the first `count`."""
        self._file.truncate(count * RECORD.itemsize)
        self._file.seek(0, os.SEEK_END)

    def append(self, records: Records) -> None:
        _write_all(self._file, memoryview(records.tobytes()))


class PackedWriter:
    """Writes runs, which come in order, to their places in a file. Raises OSError where the disk is full or fails."""

    def __init__(
        self,
        file: BinaryIO,
        path: Path,
        journal: Journal,
        header: Header,
        order: PassOrder,
        settler: ThreadPoolExecutor,
    ) -> None:
        """`file`: `path`, open for writing without a buffer; `header`: the original file's; `settler`: one thread."""
        self._file, self._path, self._journal = file, path, journal
        self._settler = settler
        self._settling: Future[None] | None = None
        self._version = version_for(header.tensors.values())
        self._plan = plan(header, order, self._version)
        self._records = np.zeros(sum(planned.n_chunks for planned in self._plan), RECORD)
        names = [name for planned in self._plan for name in planned.streams]
        longest = [(name, _LARGEST, _LARGEST, _LARGEST) for name in (*names, *reader.SERVICE)]
        room = _header_json(self._version, longest)
        self._data_begin = padded(8 + len(room), STREAM_ALIGNMENT)
        self._streams: list[tuple[str, int]] = []
        """Name and size of each that is complete."""
        self._position = self._data_begin
        """Where the current tensor begins in the file."""
        self._current = 0
        """Its index in the plan; of it, so many chunks and bytes of the fine or raw stream are written:"""
        self._chunks = self._fine_bytes = 0
        self._done = self._journaled = 0
        """Chunks of all tensors."""
        self._unsettled = 0
        """Bytes that may wait in the page cache."""

    def resume(self, pool: ThreadPoolExecutor) -> None:
        """Take over what an earlier call has written, as far as it is sound."""
        records, files = self._journal.read()[: len(self._records)], Files()
        try:
            for planned in self._plan:
                part = records[self._done : self._done + planned.n_chunks]
                part = part[: self._count_sound(planned, part, pool, files)]
                self._take(planned, part)
                if len(part) < planned.n_chunks:
                    break
        finally:
            files.close()
        self._journaled = self._done
        self._journal.cut(self._done)

    def remaining(self) -> Iterator[PackRun]:
        """What has yet to be written."""
        begin = self._chunks
        for planned in self._plan[self._current :]:
            yield from planned.runs(begin)
            begin = 0

    def write(self, encoded: Encoded) -> None:
        """Write the next run."""
        self._pass_empty()
        run, planned = encoded.run, encoded.run.planned
        coarse_step, sizes = planned.coarse_chunk_bytes, encoded.fine_sizes
        coarse = encoded.coarse[: coarse_step * (run.end - run.begin)]
        if coarse_step and run.end == planned.n_chunks:
            coarse = encoded.coarse[: planned.coarse_nbytes - coarse_step * run.begin]
            sizes[-1] += -(self._fine_bytes + sum(sizes)) % STREAM_ALIGNMENT
        fine = encoded.fine[: sum(sizes)]
        self._write_at(self._position + run.begin * coarse_step, coarse.data)
        self._write_at(self._position + planned.coarse_nbytes + self._fine_bytes, fine.data)
        self._take(planned, _records(coarse.data, coarse_step, fine.data, sizes))
        encoded.release()
        if self._unsettled >= SYNC_BYTES // 2:  # while one half is on its way to the disk, the other is filled
            self._settle()

    def keep(self) -> None:
        """Have what was written on the disk and in the journal."""
        self._settle()
        self._wait()

    def finish(self, header: bytes) -> None:
        """Write all that is not a stream; `header`: the first bytes of the original file."""
        self._pass_empty()
        contents = (header, self._records.tobytes(), self._index(len(header)))
        tail = [
            content.ljust(padded(len(content), CHUNK_ALIGNMENT), b" " if name == reader.INDEX else b"\0")
            for name, content in zip(reader.SERVICE, contents, strict=False)
        ]
        sizes = [*map(len, tail), reader.SEAL_BYTES]
        head = self._header([*self._streams, *zip(reader.SERVICE, sizes, strict=True)])
        seal = reader.seal(head, *tail)
        self._write_at(0, memoryview(head))
        self._write_at(self._position, memoryview(b"".join((*tail, seal))))
        self._file.truncate(self._position + sum(sizes))
        self._wait()
        settle(self._file)

    def _header(self, streams: Iterable[tuple[str, int]]) -> bytes:
        """All that comes before the data."""
        entries, end = [], 0
        for name, size in streams:
            entries.append((name, size, end, end + size))
            end += size
        text = _header_json(self._version, entries).ljust(self._data_begin - 8)
        return len(text).to_bytes(8, "little") + text

    def _index(self, header_bytes: int) -> bytes:
        tensors = [
            {
                "name": planned.tensor.name,
                "codec": planned.how.codec,
                "rows_per_chunk": planned.rows_per_chunk,
                "chunks": planned.n_chunks,
            }
            for planned in self._plan
        ]
        index = {"version": self._version, "header_bytes": header_bytes, "tensors": tensors}
        return json.dumps(index, separators=(",", ":")).encode()

    def _count_sound(self, planned: Planned, records: Records, pool: ThreadPoolExecutor, files: Files) -> int:
        """How many of a tensor's first chunks are on the disk as their records say."""
        sizes, most = records["fine_bytes"], planned.how.most_fine_bytes(planned.rows_per_chunk)
        impossible = np.flatnonzero((sizes == 0) | (sizes > most))
        records = records[: impossible[0]] if impossible.size else records
        fine_begin = self._position + planned.coarse_nbytes
        table = ChunkTable(records)
        chunks = slice(0, len(table))
        tensor = place(
            planned.tensor, planned.how, self._path, planned.rows_per_chunk, self._position, fine_begin, table, chunks
        )
        count = 0
        for sound, most in in_order(pool, (partial(_sound_chunks, files, run) for run in runs(tensor)), RUNS_AHEAD):
            count += sound
            if sound < most:
                break
        return count

    def _take(self, planned: Planned, records: Records) -> None:
        """Count chunks of the current tensor that are in the file."""
        self._records[self._done : self._done + len(records)] = records
        self._done += len(records)
        self._chunks += len(records)
        self._fine_bytes += int(records["fine_bytes"].sum(dtype=np.int64))
        if self._chunks == planned.n_chunks:
            self._end_tensor(planned)

    def _pass_empty(self) -> None:
        """Tensors without bytes have no runs that would end them."""
        while self._current < len(self._plan) and not self._plan[self._current].n_chunks:
            self._end_tensor(self._plan[self._current])

    def _end_tensor(self, planned: Planned) -> None:
        sizes = (planned.coarse_nbytes, self._fine_bytes) if len(planned.streams) == 2 else (self._fine_bytes,)
        self._streams += zip(planned.streams, sizes, strict=True)
        self._position += sum(sizes)
        self._current += 1
        self._chunks = self._fine_bytes = 0

    def _write_at(self, offset: int, data: memoryview) -> None:
        self._file.seek(offset)
        _write_all(self._file, data)
        self._unsettled += data.nbytes

    def _settle(self) -> None:
        """Have what was written on the disk and in the journal soon, while more is written."""
        self._wait()
        records = self._records[self._journaled : self._done]
        self._settling = self._settler.submit(self._settle_and_note, records)
        self._journaled, self._unsettled = self._done, 0

    def _settle_and_note(self, records: Records) -> None:
        settle(self._file)
        self._journal.append(records)

    def _wait(self) -> None:
        if self._settling is not None:
            self._settling.result()


def _records(coarse: memoryview, coarse_step: int, fine: memoryview, fine_sizes: list[int]) -> Records:
    """Of a run's chunks; the last coarse one may be of another size than `coarse_step`."""
    records = np.zeros(len(fine_sizes), RECORD)
    begin = 0
    for i, size in enumerate(fine_sizes):
        coarse_end = len(coarse) if i == len(fine_sizes) - 1 else (i + 1) * coarse_step
        coarse_hash = xxhash.xxh3_64_intdigest(coarse[i * coarse_step : coarse_end]) if coarse_step else 0
        records[i] = size, xxhash.xxh3_64_intdigest(fine[begin : begin + size]), coarse_hash
        begin += size
    return records


def _sound_chunks(files: Files, run: Run) -> tuple[int, int]:
    """How many of a run's first chunks are as their hashes say, and how many there are."""
    count = run.end - run.begin
    try:
        data = read_run(files, run)
    except ReadError:
        return 0, count
    damaged = (chunk - run.begin for chunk in range(run.begin, run.end) if any(data.faults(chunk)))
    return next(damaged, count), count


def _header_json(version: int, streams: Iterable[tuple[str, int, int, int]]) -> bytes:
    """The safetensors header of streams by name, size, begin and end in the data, without length and padding."""
    entries: dict[str, object] = {"__metadata__": {"format": reader.FORMAT, "version": str(version)}}
    for name, size, begin, end in streams:
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, end]}
    return json.dumps(entries, separators=(",", ":")).encode()


def _write_all(file: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
