"""The file of results: appended to as requests are done, put in the order of the requests at the end."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.batch.state import GO_ON
from penstock.disk.new_files import give_name, settle, sync_folder, write_through
from penstock.errors import PenstockError

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
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with _errors(path):
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
        with _errors(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
            if hasattr(os, "posix_fadvise"):  # the page cache counts as memory
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_in_order(path: Path, places: Iterable[tuple[int, int]]) -> None:
    """Write the results of `path`, at these offsets and of these sizes, in this order to `ordered_path(path)`.

    Raises PenstockError where the disk fails, or where results are not what was written.
    """
    unfinished = ordered_path(path)
    with _errors(unfinished), path.open("rb") as results, unfinished.open("wb") as file:
        for offset, nbytes in places:
            results.seek(offset)
            record = results.read(nbytes)
            if len(record) != nbytes or not record.endswith(b"\n"):
                raise PenstockError(
                    f"{path} is not what was written to it: no result has its {nbytes:,} bytes at offset {offset:,}.",
                    f"Put it back as it was, or delete it and {state_path(path)} to begin anew.",
                )
            write_through(file, memoryview(record))
        settle(file)


def put_in_order(path: Path) -> None:
    """Have the ordered results take the place of the others, if they have not yet."""
    with _errors(path):
        if ordered_path(path).exists():
            give_name(ordered_path(path), path)


def state_path(out: Path) -> Path:
    """Where the state of the batch is whose results go to `out`."""
    return out.with_name(out.name + ".state")


def ordered_path(out: Path) -> Path:
    """Where its results are put in order."""
    return out.with_name(out.name + ".ordered")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PenstockError(f"{path} cannot be written: {error.strerror or error}.", GO_ON) from error
