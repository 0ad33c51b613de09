"""One safetensors file, packed as it streams by.

What comes out depends on the original bytes alone, not on where they come from, on threads, or on how often it was
begun: chunks are encoded by many threads and written in their order. Each is decoded again and compared before it is
written.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from penstock.disk.in_order import in_order
from penstock.disk.new_files import give_name
from penstock.packed_format.chunks import RUNS_AHEAD
from penstock.packed_format.runs import Buffers
from penstock.packed_format.writer import Journal, PackedWriter
from penstock.safetensors_header import parse_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from penstock.packed_format.runs import PassOrder
    from penstock.packed_format.sources import Source


def pack_file(
    source: Source,
    header: bytes,
    target: Path,
    unfinished: Path,
    order: PassOrder,
    pool: ThreadPoolExecutor,
    on_bytes: Callable[[int], None],
) -> int:
    """Pack `source`, whose first bytes are `header`, into the file `target`, by way of `unfinished`.

    Where an earlier call left `unfinished` and its journal behind, this one goes on from there; returns how many bytes
    of the original that has saved. `on_bytes` is told of every byte of the original that is done, those included.
    Raises FormatError for a header that lies, ReadError, and OSError where the disk is full or fails.
    """
    original = parse_header(header, target, source.size)
    journal_path = unfinished.with_name(f"{unfinished.name}.journal")
    unfinished.touch()
    with unfinished.open("r+b", buffering=0) as file, Journal(journal_path) as journal, _one_thread() as settler:
        writer = PackedWriter(file, unfinished, journal, original, order, settler)
        writer.resume(pool)
        runs = [*writer.remaining()]
        saved = source.size - sum(run.range[1] for run in runs)
        on_bytes(saved)
        data = source.ranges([run.range for run in runs])
        buffers = Buffers()
        jobs = (partial(run.encode, next(data), source.name, buffers) for run in runs)
        try:
            for encoded in in_order(pool, jobs, RUNS_AHEAD):
                writer.write(encoded)
                on_bytes(encoded.run.range[1])
        except BaseException:
            with suppress(OSError):  # as of a full disk, which has been raised already
                writer.keep()
            raise
        writer.finish(header[: original.data_begin])
    give_name(unfinished, target)
    journal_path.unlink()
    return saved


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="penstock-write")
