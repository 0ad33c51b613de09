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

from penstock.architectures.registry import parse_config
from penstock.checkpoints.layout import UNFINISHED, LocalFolder, check_directory, find_layout
from penstock.disk.new_files import new_file, sync_folder
from penstock.errors import FormatError, PenstockError, ReadError, UsageError
from penstock.packed_format.reader import PackedFile, is_packed_file, read_packed
from penstock.packing.side_files import CONFIG
from penstock.safetensors_header import read_header
from penstock.strict_json import read_json_object, shown
from penstock.system.files import lock, open_movable

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
        self.originals: tuple[Original, ...] | None = None
        """What an earlier, unfinished call has begun with; None where there was none."""
        self._expected = 0
        """Bytes that the directory is going to take."""

    def remember(self) -> None:
        """Look what an earlier call has left."""
        path = self.unfinished / _ORIGINALS
        if not path.exists():
            return
        try:
            self.originals = tuple(Original(**entry) for entry in read_json_object(path)["originals"])
        except (FormatError, TypeError, KeyError) as error:
            problem = f"{path} is damaged, so that it cannot be told what {self.path} was begun with"
            raise UsageError(problem, f"Delete {self.path} and begin again.") from error

    def check(self, originals: Sequence[Original]) -> None:
        """Make sure that the originals are those of the earlier call, if there was one.

        Raises UsageError where they are not, or where the directory holds anything else.
        """
        if self.originals is None:
            others = sorted(file.name for file in self.path.iterdir() if file.name != UNFINISHED)
            if others:
                problem = f"{self.path} is there already and is not an empty directory (it holds {shown(others[0])})"
                raise UsageError(problem, "Choose a name that is not taken, or delete it first.")
            return
        begun = {original.name: original for original in self.originals}
        changed = [original.name for original in originals if begun.get(original.name) != original]
        if changed:
            problem = f"{self.path} was begun with another {changed[0]}: its size, time or version was not this one's"
            raise UsageError(problem, f"Delete {self.path} to begin again, or give the source that it was begun with.")

    def begin(self, originals: Sequence[Original]) -> None:
        """Check the originals and remember them, unless an earlier call has."""
        self.check(originals)
        if self.originals is None:
            self.originals = tuple(originals)
            with self.new_file(_ORIGINALS, self.unfinished) as file:
                entries = [asdict(original) for original in originals]
                file.write(json.dumps({"originals": entries}).encode())

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
        """Raise PenstockError where the disk has less than `need` bytes free, which are what is yet to be written."""
        self._expected = self.bytes_written() + need
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise PenstockError(f"{self.path} needs {need:,} more bytes of disk and has {free:,}", remedy)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """OSErrors as PenstockErrors."""
        try:
            yield
        except OSError as error:
            where, remedy = error.filename or self.path, "run the same command: it goes on from there."
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                problem = f"{where} cannot be read or written: {error.strerror or error}"
                raise PenstockError(problem, f"Check the disk and your permissions there, then {remedy}") from error
            more, free = max(0, self._expected - self.bytes_written()), shutil.disk_usage(self.path).free
            problem = f"{self.path} needs about {more:,} more bytes of disk and has {free:,}: the disk is full"
            raise PenstockError(problem, f"Free some space, then {remedy}") from error


@contextmanager
def open_pack_folder(path: Path) -> Iterator[PackFolder]:
    """The directory `path`, made if need be, for this process alone.

    Raises UsageError where another process is at it, PenstockError where the disk is full or fails; what is written by
    then stays, for a later call to go on with, unless it is nothing.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    folder = PackFolder(path)
    with folder.disk_errors():
        folder.unfinished.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(folder.unfinished / "lock", path):
                folder.remember()
                yield folder
        finally:
            with suppress(OSError):  # those that are not empty stay
                for empty in (folder.unfinished, *made):
                    empty.rmdir()


@contextmanager
def _locked(file: Path, path: Path) -> Iterator[None]:
    """Hold the lock on `file`, which no two processes do at once; it goes where it is the last one in its folder."""
    with open(file, "wb", opener=open_movable) as opened:
        locked = True
        with suppress(OSError):  # a file system without locks
            locked = lock(opened.fileno())
        if not locked:
            problem = f"{path} is being written by another process"
            raise UsageError(problem, "Wait until that is done, or stop it; the same command then goes on.")
        if not (file.exists() and os.path.samestat(file.stat(), os.fstat(opened.fileno()))):
            raise UsageError(f"{path} was being written by another process until now", "Run the command again.")
        try:
            yield
        finally:
            if file.exists() and [*file.parent.iterdir()] == [file]:
                file.unlink()


def _allocated(file: Path) -> int:
    """Bytes that a file takes on the disk."""
    status = file.stat()
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512


def packed_files(packed: Path) -> dict[str, PackedFile]:
    """The packed weight files of a model by their names.

    Raises UsageError where not all of it is packed, CheckpointError where it is none, ChecksumError for damage.
    """
    check_directory(packed)
    config = parse_config(read_json_object(packed / CONFIG), str(packed / CONFIG))
    paths = list(find_layout(LocalFolder(packed), config).prefixes)
    originals = [path for path in paths if not is_packed_file(read_header(path))]
    if len(originals) == len(paths):
        raise UsageError(f"{packed} is not packed: its files are the original ones", "Use them as they are.")
    if originals:
        problem = f"{packed} is packed in part: {originals[0].relative_to(packed)} is an original file"
        raise UsageError(problem, "Use the model as it is, or give one whose files are all packed.")
    return {path.relative_to(packed).as_posix(): read_packed(path) for path in paths}
