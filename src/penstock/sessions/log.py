"""A session on the disk: a log of records, each under a checksum, that grows by one record a pass.

    penstock session 1\\n        a line of text: magic and version
    record, record, ...

Record, numbers little-endian:

    4 bytes   "\\x93rec"
    4 bytes   kind, ASCII
    u32       number: 0 for the first record, then 1, 2, ...
    u32       bytes of meta
    u64       bytes of payload
    u64       XXH3-64 of the 24 bytes above and of meta
    ...       meta, a JSON object
    ...       payload
    u64       XXH3-64 of payload

A record is on the disk before the next one begins, so a crash can tear the last one only. What follows the last sound
record is such a tear, and is dropped, unless a sound record comes later: then bytes in between were damaged.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from typing import TYPE_CHECKING, Any, NoReturn

import xxhash

from penstock.disk.new_files import SYNC_BYTES, give_name, settle, sync_folder
from penstock.disk.system_files import system
from penstock.errors import SessionError, UsageError
from penstock.system.files import lock, open_movable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

VERSION = 1
MAGIC = b"penstock session "
_FIRST_LINE = MAGIC + b"%d\n" % VERSION
_MARK = b"\x93rec"
_HEAD = struct.Struct("<4s4sIIQ")
_HASH = struct.Struct("<Q")
_OVERHEAD = _HEAD.size + 2 * _HASH.size
_STEP = 1 << 20
"""Bytes that are read at once."""


class SessionWarning(UserWarning):
    """A session that lost its last record."""


class _DamagedError(SessionError):
    """Bytes that are not those that were written, told apart from those that the disk did not give."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in the file; `payload` is where its payload begins."""

    kind: str
    meta: Any
    """JSON of any kind: who reads it checks what it says."""
    begin: int
    payload: int
    payload_bytes: int

    @property
    def end(self) -> int:
        return self.payload + self.payload_bytes + _HASH.size


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to write; the payload is of `payload_bytes` bytes in all."""

    kind: str
    meta: dict[str, Any]
    payload: Iterable[bytes] = ()
    payload_bytes: int = 0


class SessionLog:
    """The file of one session, locked against every other process. To be closed."""

    def __init__(self, path: Path) -> None:
        """Open the log at `path`, or begin one there.

        Raises SessionError where another process has it, where it cannot be opened, or is of another version or no
        session at all; UsageError where `path` is not that of a file.
        """
        self.path = path.expanduser().resolve()
        self._file = _open_locked(self.path)
        self._end = 0, 0
        """Where the next record begins, and its number."""
        self._unfinished = False
        """Whether a record may lie there that was not written to its end."""
        try:
            self._check_first_line()
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written yet."""
        return self._end[0] == 0

    def replay(self) -> Iterator[Record]:
        """The records, in order; to be gone through once, before anything is appended.

        A torn last record is dropped, with a SessionWarning. Raises SessionError where bytes before it are damaged.
        """
        while self._end[0] < self.size:
            begin, number = self._end
            record = self._record_at(begin)
            if record is None or (record.end == self.size and not self._is_sound(record)):
                self._drop_tail(begin)
                return
            self._end = record.end, number + 1
            yield record

    def payload(self, record: Record, chunk: int) -> Iterator[bytes]:
        """A record's payload, `chunk` bytes at a time. Raises SessionError at its end if it is damaged."""
        digest = xxhash.xxh3_64()
        for begin in range(record.payload, record.end - _HASH.size, chunk):
            data = self._read(begin, min(chunk, record.end - _HASH.size - begin))
            digest.update(data)
            yield data
        system.drop(self._file.fileno(), record.payload, record.payload_bytes)  # the page cache counts as memory
        if self._read(record.end - _HASH.size, _HASH.size) != _HASH.pack(digest.intdigest()):
            raise self._damaged(record.payload)

    def append(self, record: NewRecord, sync: bool = True) -> None:
        """Have a record on the disk, or, without `sync`, safe from a kill only.

        Raises SessionError where that fails; the file is then as it was before. So it is after Ctrl-C, unless the
        record was there already.
        """
        begin, number = self._end
        try:
            if self._unfinished:
                self._file.truncate(begin)
            self._unfinished = True
            self._file.seek(begin)
            if begin == 0:
                _write(self._file, _FIRST_LINE)
            _write_record(self._file, number, record)
            if sync:
                settle(self._file)
            if begin == 0:
                sync_folder(self.path.parent)
            self._end = self._file.tell(), number + 1
            self._unfinished = False
        except BaseException as error:
            self._drop_unfinished()
            raise self._no_room(error) from error if isinstance(error, OSError) else None

    def rewrite(self, records: Iterable[NewRecord]) -> None:
        """Put these records in place of all that the log holds. Raises SessionError; the log is then as it was."""
        new = self.path.with_name(self.path.name + ".new")
        file = _open(new, os.O_TRUNC)
        number = 0
        try:
            _lock(file, new)
            _write(file, _FIRST_LINE)
            for record in records:
                _write_record(file, number, record)
                number += 1
            settle(file)
            give_name(new, self.path)
            self._replace(file, number)
        except BaseException as error:
            if _is_at(self.path, file):  # Ctrl-C after it came into its place
                self._replace(file, number)
            else:
                file.close()
                with suppress(OSError):
                    new.unlink()
            raise self._no_room(error) from error if isinstance(error, OSError) else None

    def _replace(self, file: FileIO, number: int) -> None:
        """Go on with another file, of so many records."""
        before, self._file, self._end, self._unfinished = self._file, file, (file.tell(), number), False
        if before is not file:
            before.close()

    def _drop_unfinished(self) -> None:
        """Where that fails it is tried again before the next record, and whoever opens the file drops a torn one."""
        with suppress(OSError):
            if self._unfinished:
                self._file.truncate(self._end[0])
                self._unfinished = False

    def close(self) -> None:
        """Let others have the file; one to which nothing was written is removed."""
        if not self._file.closed:
            self._drop_unfinished()
            if self.is_new:
                with suppress(OSError):
                    self.path.unlink()
            self._file.close()

    def malformed(self) -> SessionError:
        """Of records that are sound and yet make no sense."""
        return SessionError(f"{self.path} has intact records that make no sense together.", "Begin another session.")

    def _check_first_line(self) -> None:
        line = self._read(0, min(self.size, len(_FIRST_LINE)))
        if _FIRST_LINE.startswith(line):
            if self.size <= len(_FIRST_LINE):  # a session that was killed as it began
                self._truncate(0)
            else:
                self._end = len(_FIRST_LINE), 0
            return
        if line.startswith(MAGIC):
            version = line[len(MAGIC) :].split(b"\n")[0].decode("ascii", "replace")
            raise SessionError(
                f"{self.path} is a session of format version {version}; this is a Penstock for version {VERSION}.",
                "Go on with the Penstock that made it, or begin another session.",
            )
        raise SessionError(f"{self.path} is not a session.", "Give the name of a session, or of a new file.")

    def _record_at(self, begin: int) -> Record | None:
        """The record that begins there; None where its head, its meta or its number is not sound, or its end is
        missing."""
        size = self.size
        head = self._read(begin, min(_HEAD.size + _HASH.size, size - begin))
        if len(head) < _HEAD.size + _HASH.size or not head.startswith(_MARK):
            return None
        _, kind, number, meta_bytes, payload_bytes = _HEAD.unpack_from(head)
        payload = begin + len(head) + meta_bytes
        if payload + payload_bytes + _HASH.size > size:
            return None
        meta = self._read(begin + len(head), meta_bytes)
        if _HASH.pack(_digest(head[: _HEAD.size], meta)) != head[_HEAD.size :] or number < self._end[1]:
            return None
        if number > self._end[1]:
            raise self._damaged(begin)
        return Record(kind.decode("latin-1"), self._parsed(meta), begin, payload, payload_bytes)

    def _parsed(self, meta: bytes) -> object:
        """Raises SessionError where it is not what `_write_record` writes."""
        try:
            return json.loads(meta.decode("ascii"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise self.malformed() from error

    def _is_sound(self, record: Record) -> bool:
        try:
            for _ in self.payload(record, _STEP):
                pass
        except _DamagedError:
            return False
        return True

    def _drop_tail(self, begin: int) -> None:
        """What begins there is no record: a tear, unless a record comes behind it."""
        size, overlap = self.size, len(_MARK) - 1
        for offset in range(begin + 1, size, _STEP):
            data = self._read(offset, min(_STEP + overlap, size - offset))
            at = data.find(_MARK)
            while at >= 0:
                if self._is_later_record(offset + at):
                    raise self._damaged(begin)
                at = data.find(_MARK, at + 1)
        message = f"{self.path}: the last record is torn, and was dropped; what it held is computed anew."
        warnings.warn(message, SessionWarning, stacklevel=2)
        if not self._end[1]:
            self._end = 0, 0
        self._truncate(self._end[0])

    def _is_later_record(self, begin: int) -> bool:
        try:
            return self._record_at(begin) is not None
        except _DamagedError:  # sound, and of a later number than expected
            return True

    def _damaged(self, offset: int) -> SessionError:
        return _DamagedError(
            f"{self.path}: damaged at offset {offset}; its checksum does not match.",
            "Nothing of it is used. Put a copy of the file there, or begin another session.",
        )

    def _no_room(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        return SessionError(
            f"{self.path} cannot be written to: {os.strerror(error.errno or 0)}.",
            "What it held before is still there. Make room on its disk, and run the same command again to go on.",
        )

    def _truncate(self, size: int) -> None:
        """Raises SessionError where the disk fails."""
        try:
            self._file.truncate(size)
        except OSError as error:
            raise self._no_room(error) from error

    def _read(self, offset: int, nbytes: int) -> bytes:
        """All of these bytes, which the file has. Raises SessionError where the disk fails."""
        reason = "the file ends there, though it is longer"
        try:
            self._file.seek(offset)
            data = self._file.read(nbytes)
            while len(data) < nbytes and (part := self._file.read(nbytes - len(data))):
                data += part
            if len(data) == nbytes:
                return data
        except OSError as error:
            reason = os.strerror(error.errno or 0)
        raise SessionError(f"{self.path}: reading at offset {offset} failed: {reason}.", "Check the disk.")


def _open_locked(path: Path) -> FileIO:
    """Raises SessionError, UsageError."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file.", "Give --session the name of a file.")
    except OSError as error:
        raise _cannot_open(path, error) from error
    while True:
        file = _open(path)
        try:
            _lock(file, path)
            if _is_at(path, file):  # and not a file that another process put a new one in place of
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _open(path: Path, flags: int = 0) -> FileIO:
    """For this user alone: conversations are private. Raises SessionError."""
    try:
        return FileIO(open_movable(path, os.O_RDWR | os.O_CREAT | flags, 0o600), "r+b")
    except OSError as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: OSError) -> SessionError:
    problem = f"{path} cannot be opened: {os.strerror(error.errno or 0)}."
    return SessionError(problem, "Give --session a file that you may write, in a folder that exists.")


def _lock(file: FileIO, path: Path) -> None:
    """Raises SessionError where another process has the file."""
    try:
        locked = lock(file.fileno())
    except OSError as error:
        problem = f"{path} cannot be locked: {os.strerror(error.errno or 0)}."
        raise SessionError(problem, "Keep sessions on a file system of this machine.") from error
    if not locked:
        problem = f"{path} is in use by another process."
        raise SessionError(problem, "Wait until that one has ended, or use another session.")


def _is_at(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write_record(file: FileIO, number: int, record: NewRecord) -> None:
    meta = json.dumps(record.meta, separators=(",", ":")).encode()
    head = _HEAD.pack(_MARK, record.kind.encode("ascii"), number, len(meta), record.payload_bytes)
    _write(file, head + _HASH.pack(_digest(head, meta)) + meta)
    digest, unsettled = xxhash.xxh3_64(), 0
    for data in record.payload:
        digest.update(data)
        _write(file, data)
        unsettled += len(data)
        if unsettled >= SYNC_BYTES:
            settle(file)
            unsettled = 0
    _write(file, _HASH.pack(digest.intdigest()))


def _write(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _digest(head: bytes, meta: bytes) -> int:
    digest = xxhash.xxh3_64(head)
    digest.update(meta)
    return digest.intdigest()
