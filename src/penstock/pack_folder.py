"""A directory that files are being written to, one process at a time, and over several calls if need be.

What is not finished is in a folder of its own within it, `.penstock`, which goes when all is done. It remembers which
originals the files are made from, so that a later call goes on with the same ones or says that they have changed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from penstock.errors import FormatError, PenstockError, ReadError, UsageError
from penstock.layout import UNFINISHED
from penstock.new_files import new_file, sync_folder
from penstock.packed import PackedFile, read_packed
from penstock.strict_json import read_json_object, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ORIGINALS = "originals.json"


@dataclass(frozen=True, slots=True)
class Original:
    """A file that is packed: its path relative to the checkpoint, the prefix that its tensors' names may lack, its
    size, and what changes when its content does (a time, a hash)."""

    name: str
    prefix: str
    size: int
    stamp: str


class PackFolder:
    """See `open_pack_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished = path / UNFINISHED
        self.originals = self._remembered()
        """What an earlier, unfinished call has begun with; None where there was none."""

    def begin(self, originals: Sequence[Original]) -> None:
        """Remember the originals, or make sure that they are those of the earlier call.

        Raises UsageError where the directory holds anything else.
        """
        if self.originals is None:
            others = sorted(file.name for file in self.path.iterdir() if file.name != UNFINISHED)
            if others:
                problem = f"{self.path} is there already and is not an empty directory (it holds {shown(others[0])})"
                raise UsageError(problem, "Choose a name that is not taken, or delete it first.")
            self.originals = tuple(originals)
            with self.new_file(_ORIGINALS, self.unfinished) as file:
                entries = [asdict(original) for original in originals]
                file.write(json.dumps({"originals": entries}).encode())
            return
        begun = {original.name: original for original in self.originals}
        changed = [original.name for original in originals if begun.get(original.name) != original]
        if changed:
            problem = (
                f"{self.path} was begun with another {changed[0]} than this one: its size, time or version differs"
            )
            raise UsageError(problem, f"Delete {self.path} to begin again, or give the source that it was begun with.")

    def target(self, name: str) -> Path:
        """Where a file goes."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def partial(self, name: str) -> Path:
        """Where it is while it is being written."""
        path = self.unfinished / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finished(self, original: Original) -> PackedFile | None:
        """The packed form of an original, where it is finished and its seal holds."""
        if not (self.path / original.name).exists():
            return None
        try:
            file = read_packed(self.path / original.name)
        except (FormatError, ReadError):
            return None
        return file if file.original_size == original.size else None

    @contextmanager
    def new_file(self, name: str, folder: Path | None = None) -> Iterator[BinaryIO]:
        """A small file that gets its name once its bytes are on the disk."""
        with new_file((folder or self.path) / name, self.partial(f"{name}.new")) as file:
            yield file

    def bytes_written(self) -> int:
        """Of all files in the directory, as far as they are on the disk."""
        return sum(_allocated(file) for file in self.path.rglob("*") if file.is_file())

    def finish(self) -> None:
        """Nothing is unfinished any more."""
        shutil.rmtree(self.unfinished)
        sync_folder(self.path)

    def check_room(self, need: int, remedy: str) -> None:
        """Raise PenstockError where the disk has less than `need` bytes free."""
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise PenstockError(f"{self.path} needs {need:,} more bytes of disk and has {free:,}", remedy)

    def _remembered(self) -> tuple[Original, ...] | None:
        path = self.unfinished / _ORIGINALS
        if not path.exists():
            return None
        try:
            return tuple(Original(**entry) for entry in read_json_object(path)["originals"])
        except (FormatError, TypeError, KeyError) as error:
            problem = f"{path} is damaged, so that it cannot be told what {self.path} was begun with"
            raise UsageError(problem, f"Delete {self.path} and begin again.") from error


@contextmanager
def open_pack_folder(path: Path) -> Iterator[PackFolder]:
    """The directory `path`, made if need be, for this process alone.

    Raises UsageError where another process is at it, PenstockError where the disk is full or fails; what is written by
    then stays, for a later call to go on with, unless it is nothing.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with _disk_errors(path):
        (path / UNFINISHED).mkdir(parents=True, exist_ok=True)
        try:
            with _locked(path / UNFINISHED / "lock", path):
                yield PackFolder(path)
        finally:
            with suppress(OSError):  # those that are not empty stay
                for folder in (path / UNFINISHED, *made):
                    folder.rmdir()


@contextmanager
def _locked(lock: Path, path: Path) -> Iterator[None]:
    """Hold `lock`, which no two processes do at once; the file goes where it is the last one in its folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with lock.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = f"{path} is being written by another process"
            raise UsageError(problem, "Wait until that is done, or stop it; the same command then goes on.") from error
        except OSError:  # a file system without locks
            pass
        if not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))):
            raise UsageError(f"{path} was being written by another process until now", "Run the command again.")
        try:
            yield
        finally:
            if lock.exists() and [*lock.parent.iterdir()] == [lock]:
                lock.unlink()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """OSErrors as PenstockErrors."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"{where}: the disk is full ({shutil.disk_usage(path).free:,} bytes are free)"
            raise PenstockError(
                problem, "Free some space, then run the same command: it goes on from there."
            ) from error
        problem = f"{where} cannot be read or written: {error.strerror or error}"
        remedy = "Check the disk and your permissions there, then run the same command: it goes on from there."
        raise PenstockError(problem, remedy) from error


def _allocated(file: Path) -> int:
    """Bytes that a file takes on the disk."""
    status = file.stat()
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
