"""The file of results: appended to as requests are done, put in the order of the requests at the end."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from penstock.batch.state import GO_ON
from penstock.errors import PenstockError
from penstock.new_files import give_name, new_file, sync_folder, write_through

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType


class ResultFile:
    """Results in the order in which they come; a context manager. Raises PenstockError where the disk fails."""

    def __init__(self, path: Path, position: int, records: Sequence[bytes]) -> None:
        """Open or create it. Its first `position` bytes are known to be there, and `records` follow, whatever a kill
        left of them."""
        self.path = path
        with _errors(path):
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)), "r+b")
            sync_folder(path.parent)
        try:
            self._repair(position, records)
        except BaseException:
            self._file.close()
            raise

    def _repair(self, position: int, records: Sequence[bytes]) -> None:
        with _errors(self.path):
            size = self._file.seek(0, os.SEEK_END)
        if size < position:
            raise PenstockError(
                f"{self.path} has {size:,} bytes; {position:,} had been written when the batch was interrupted.",
                f"Put it back as it was; or delete it and {state_path(self.path)} to begin anew.",
            )
        with _errors(self.path):
            self._file.truncate(position)
        self.append(records)

    def append(self, records: Iterable[bytes]) -> None:
        """Write at the end, and have it on the disk."""
        with _errors(self.path):
            self._file.seek(0, os.SEEK_END)
            for record in records:
                self._file.write(record)
            self._file.flush()
            os.fsync(self._file.fileno())
            if hasattr(os, "posix_fadvise"):  # nothing of it stays in the page cache, which counts as memory
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def write_ordered(self, places: Iterable[tuple[int, int]]) -> None:
        """Write the results in the order of `places` (offset, size) to a file beside this one."""
        unfinished = ordered_path(self.path)
        with _errors(unfinished), unfinished.open("wb") as file:
            for offset, nbytes in places:
                self._file.seek(offset)
                write_through(file, memoryview(self._file.read(nbytes)))

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def state_path(out: Path) -> Path:
    """Where the state of the batch is whose results go to `out`."""
    return out.with_name(out.name + ".state")


def ordered_path(out: Path) -> Path:
    """Where its results are put in order."""
    return out.with_name(out.name + ".ordered")
