"""The file of results: appended to as requests are done, put in the order of the requests at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from penstock.batch.disk_errors import reading, writing
from penstock.batch.state import check_of
from penstock.disk.new_files import give_name, settle, sync_folder, write_through
from penstock.disk.system_files import system
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from penstock.batch.state import Place


class ResultFile:
    """Results in the order in which they come; a context manager. Raises PenstockError where the disk fails."""

    def __init__(self, path: Path, position: int, records: Sequence[bytes]) -> None:
        """Open or create it. Its first `position` bytes are known to be there, and `records` follow, whatever a kill
        left of them."""
        self.path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with writing(path):
                sync_folder(path.parent)
                self._repair(position)
            self.append(records)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _repair(self, position: int) -> None:
        size = os.fstat(self._descriptor).st_size
        if size < position:
            raise PenstockError(
                f"{self.path} has {size:,} bytes, but {position:,} had been written when it was interrupted.",
                f"Put it back as it was, or delete it and {state_path(self.path)} to begin anew.",
            )
        os.ftruncate(self._descriptor, position)
        os.lseek(self._descriptor, position, os.SEEK_SET)

    def append(self, records: Iterable[bytes]) -> None:
        """Write at the end, and have it on the disk."""
        data = memoryview(b"".join(records))
        if not data:
            return
        with writing(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]
            system.sync(self._descriptor)
            system.drop(self._descriptor)  # the page cache counts as memory

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_in_order(path: Path, places: Iterable[Place]) -> None:
    """Write the results of `path`, from these places, in this order to `ordered_path(path)`.

    Raises PenstockError where the disk fails, or where results are not what was written.
    """
    unfinished = ordered_path(path)
    with reading(path):
        results = path.open("rb")
    with results, writing(unfinished), unfinished.open("w+b") as file:
        for place in places:
            write_through(file, memoryview(_result(path, results, place)))
        settle(file)


def _result(path: Path, results: BinaryIO, place: Place) -> bytes:
    with reading(path):
        results.seek(place.offset)
        record = results.read(place.nbytes)
    sound = len(record) == place.nbytes and record.endswith(b"\n")
    if not sound or place.check not in (None, check_of(record)):
        raise PenstockError(
            f"{path} is not what was written to it: no result has its {place.nbytes:,} bytes at offset "
            f"{place.offset:,}.",
            f"Put it back as it was, or delete it and {state_path(path)} to begin anew.",
        )
    return record


def put_in_order(path: Path) -> None:
    """Have the ordered results take the place of the others, if they have not yet."""
    with writing(path):
        if ordered_path(path).exists():
            give_name(ordered_path(path), path)


def state_path(out: Path) -> Path:
    """Where the state of the batch is whose results go to `out`."""
    return out.with_name(out.name + ".state")


def ordered_path(out: Path) -> Path:
    """Where its results are put in order."""
    return out.with_name(out.name + ".ordered")
