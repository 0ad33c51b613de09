"""What a batch has done so far, on the disk after every pass: a small database beside the results.

Results are in the database first, then in their file: a kill between the two loses neither. One transaction a pass
takes in the tokens that it drew and the results that it finished; with `synchronous=FULL` it outlives a power failure.
The database is held by one process at a time, until that ends, however it ends.

SQLite has no checksums but those of its log, so each row has one of its own, over all that is in it, and the job knows
how many lines there are: a bit that has turned shows before it counts, also one in the file of results.

Source: sqlite.org, "Write-Ahead Logging" (without shared memory in exclusive mode) and "Atomic Commit".
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from penstock.batch.disk_errors import GO_ON, writing
from penstock.batch.requests import Line
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

FORMAT = 2
"""Format 1 had no checksums."""

_TABLES = """
CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE lines (
    number INTEGER PRIMARY KEY, offset INTEGER, nbytes INTEGER, digest BLOB,
    first_of_id INTEGER,    -- an earlier line that has the same custom_id
    failed INTEGER,         -- NULL while there is no result
    out_offset INTEGER, out_nbytes INTEGER, tokens INTEGER,
    record_check INTEGER,   -- of the result; NULL also where format 1 wrote it
    row_check INTEGER
);
CREATE TABLE unwritten (number INTEGER PRIMARY KEY, out_offset INTEGER, record BLOB, row_check INTEGER);
CREATE TABLE drawn (
    number INTEGER, choice INTEGER, first INTEGER, content TEXT, row_check INTEGER, PRIMARY KEY (number, choice, first)
) WITHOUT ROWID;
CREATE TABLE ids (custom_id TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID;
"""
_COLUMNS = {
    "lines": "number, offset, nbytes, digest, first_of_id, failed, out_offset, out_nbytes, tokens, record_check",
    "unwritten": "number, out_offset, record",
    "drawn": "number, choice, first, content",
}
"""What `row_check` is of."""
_OF_THE_DISK = ("disk I/O error", "disk is full", "unable to open", "readonly", "out of memory")
"""What SQLite says where the file is not to blame."""


def check_of(*values: object) -> int:
    """XXH3-64 of values, as SQLite has integers. A single bytes object is hashed as it is."""
    data = values[0] if len(values) == 1 and isinstance(values[0], bytes) else ascii(values).encode()
    return xxhash.xxh3_64_intdigest(data) - (1 << 63)


@dataclass(frozen=True, slots=True)
class ToDo:
    """A line without a result."""

    line: Line
    first_of_id: int | None
    """An earlier line that has the same custom_id."""


@dataclass(frozen=True, slots=True)
class Result:
    """The record of a line, ready to be written."""

    number: int
    record: bytes
    failed: bool
    tokens: int


class Place(NamedTuple):
    """Where a result is in its file."""

    offset: int
    nbytes: int
    check: int | None
    """check_of its bytes; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one pass drew for a choice of a line: JSON, and which of its tokens is the first."""

    number: int
    choice: int
    first: int
    content: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How far the lines are."""

    total: int
    done: int
    """With a result, failures included."""
    failed: int
    tokens: int
    """Of the results."""


class State:
    """The database; a context manager that lets go of it. Raises PenstockError where its disk fails or is full, and
    where it is damaged."""

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises UsageError while another process has it."""
        self.path = path
        with self._errors():
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            self._set_up()
        except BaseException:
            self._db.close()
            raise

    def _set_up(self) -> None:
        self.job: dict[str, Any] | None = None
        """What is being done; None where nothing has begun."""
        self._next_job: dict[str, Any] | None = None
        """The same, once the transaction is over."""
        with self._errors():
            self._db.create_function("check_of", -1, check_of, deterministic=True)
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                self._db.execute(f"PRAGMA {setting}").fetchall()  # an error may come behind the first row
            self._db.execute("BEGIN EXCLUSIVE")
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            self._db.execute("COMMIT")
            [(found,)] = self._db.execute("PRAGMA quick_check(1)")
        if not self.path.exists():
            raise self._in_use()
        if found != "ok":
            raise self.damaged(found)
        if tables:
            self._take_in()

    def _take_in(self) -> None:
        """The job, of an earlier format too."""
        with self._errors():
            rows = dict(self._db.execute("SELECT name, value FROM job"))
        check = rows.pop("check", None)
        first_format = check is None and rows.get("format") == "1"
        if not first_format and check != _check_of_job(rows):
            raise self.damaged("what its job says is not what was written")
        try:
            job = {name: json.loads(value) for name, value in rows.items()}
        except (ValueError, TypeError) as error:
            raise self.damaged("its job is no JSON") from error
        if first_format:
            self._upgrade(job)
        elif job["format"] != FORMAT:
            problem = f"{self.path} has format {job['format']}; this is a Penstock for format {FORMAT}."
            raise PenstockError(problem, "Go on with the Penstock that began the batch.")
        else:
            self.job = job

    def _upgrade(self, job: dict[str, Any]) -> None:
        """Give a database of format 1 its checksums; what was wrong in it then, nothing tells."""
        with self._transaction():
            self._db.execute("DROP INDEX to_do")
            self._db.execute("ALTER TABLE lines ADD COLUMN record_check INTEGER")
            for table, columns in _COLUMNS.items():
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN row_check INTEGER")
                self._db.execute(f"UPDATE {table} SET row_check = check_of({columns})")
            [(lines,)] = self._db.execute("SELECT count(*) FROM lines")
            self._set_job(job | {"format": FORMAT, "lines": lines})

    def begin(self, job: dict[str, Any], lines: Iterable[tuple[Line, str | None]]) -> None:
        """Note what is to be done: all of it, or nothing where this is interrupted. `lines`: with their custom_ids."""
        with self._transaction():
            for table in ("job", "lines", "unwritten", "drawn", "ids"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            count = 0
            for line, custom_id in lines:
                self._add(line, custom_id)
                count += 1
            self._db.execute("DROP TABLE ids")
            self._set_job(job | {"format": FORMAT, "phase": "running", "out_bytes": 0, "lines": count})
        with self._errors():  # damage to the log can take back passes then, and not that there is a batch
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _add(self, line: Line, custom_id: str | None) -> None:
        first = None
        if custom_id is not None:
            new = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, line.number)).rowcount
            if not new:
                (first,) = self._db.execute("SELECT number FROM ids WHERE custom_id = ?", (custom_id,)).fetchone()
        self._insert("lines", (line.number, line.offset, line.nbytes, line.digest, first, *[None] * 5))

    @property
    def phase(self) -> str:
        """ "running", or "ordered" where all results are written in order, and only have to be given their name."""
        return str(self._job["phase"])

    @property
    def has_progress(self) -> bool:
        """Whether anything would be lost with it."""
        if self.job is None:
            return False
        with self._errors():
            drawn = self._db.execute("SELECT EXISTS (SELECT 1 FROM drawn)").fetchone()[0]
        return bool(drawn or self._out_bytes)

    def to_do(self, after: int, most: int) -> list[ToDo]:
        """Lines without a result, those behind line `after`, in their order."""
        rows = self._rows("lines", "WHERE failed IS NULL AND number > ? ORDER BY number LIMIT ?", (after, most))
        return [ToDo(Line(*row[:4]), row[4]) for row in rows]

    def drawn(self, number: int) -> list[list[Drawn]]:
        """What was drawn for a line so far: of each of its choices, what each pass brought."""
        rows = self._rows("drawn", "WHERE number = ? ORDER BY choice, first", (number,))
        parts = [Drawn(*row) for row in rows]
        choices: list[list[Drawn]] = [[] for _ in range(1 + max((part.choice for part in parts), default=-1))]
        for part in parts:
            choices[part.choice].append(part)
        return choices

    def counts(self) -> Counts:
        """Goes through all lines."""
        with self._errors():
            *counts, sound = self._db.execute(
                "SELECT count(*), count(failed), coalesce(sum(failed), 0), coalesce(sum(tokens), 0),"
                f" coalesce(min(row_check IS check_of({_COLUMNS['lines']})), 1) FROM lines"
            ).fetchone()
        if not sound or counts[0] != self._job["lines"]:
            raise self.damaged("its lines are not those that were written")
        return Counts(*counts)

    def longest_line(self) -> int:
        """Bytes."""
        with self._errors():
            return int(self._db.execute("SELECT coalesce(max(nbytes), 0) FROM lines").fetchone()[0])

    def commit(self, drawn: Iterable[Drawn], results: Sequence[Result]) -> None:
        """Take in what a pass brought; the results of earlier ones have to be in their file by now."""
        position = self._out_bytes
        with self._transaction():
            self._db.execute("DELETE FROM unwritten")
            for one in drawn:
                self._insert("drawn", (one.number, one.choice, one.first, one.content))
            for result in results:
                self._take(result, position)
                position += len(result.record)
            self._set_job(self._job | {"out_bytes": position})

    def _take(self, result: Result, position: int) -> None:
        self._insert("unwritten", (result.number, position, result.record))
        self._db.execute("DELETE FROM drawn WHERE number = ?", (result.number,))
        [row] = self._rows("lines", "WHERE number = ?", (result.number,)) or [()]
        if not row:
            raise self.damaged(f"line {result.number} is gone")
        check = check_of(result.record)
        self._insert("lines", (*row[:5], int(result.failed), position, len(result.record), result.tokens, check))

    def unwritten(self) -> tuple[int, list[bytes]]:
        """Where the latest results belong in their file, and the results; they may be there or not."""
        rows = self._rows("unwritten", "ORDER BY out_offset")
        return (rows[0][1] if rows else self._out_bytes), [record for *_, record in rows]

    def places(self) -> Iterator[Place]:
        """That of every result, in the order of the requests. Raises PenstockError where there is a line without."""
        after = count = 0
        while rows := self._rows("lines", "WHERE number > ? ORDER BY number LIMIT 1000", (after,)):
            for after, *_, offset, nbytes, _, check in rows:
                if offset is None:
                    raise self.damaged(f"line {after} has no result")
                yield Place(offset, nbytes, check)
            count += len(rows)
        if count != self._job["lines"]:
            raise self.damaged(f"{count:,} lines of {self._job['lines']:,} are there")

    def set_phase(self, phase: str) -> None:
        """Note which of the last steps is reached."""
        with self._transaction():
            self._set_job(self._job | {"phase": phase})

    def close(self) -> None:
        with self._errors():
            self._db.close()

    def remove(self) -> None:
        """Delete the database."""
        if os.name == "nt":
            self.close()
        with writing(self.path):
            self.path.unlink(missing_ok=True)  # while it is held, where that is possible: nobody else is to take it up
            self.close()
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @property
    def _job(self) -> dict[str, Any]:
        if self.job is None:
            raise PenstockError(f"{self.path}: no batch has begun there.")
        return self.job

    @property
    def _out_bytes(self) -> int:
        size = self._job["out_bytes"]
        return int(size)

    def _set_job(self, job: dict[str, Any]) -> None:
        """Within a transaction."""
        rows = {name: json.dumps(value) for name, value in job.items()}
        rows["check"] = _check_of_job(rows)
        self._db.executemany("INSERT OR REPLACE INTO job VALUES (?, ?)", rows.items())
        self._next_job = job

    def _insert(self, table: str, values: Sequence[object]) -> None:
        """A row, in place of one that has the same key."""
        marks = ", ".join("?" * (len(values) + 1))
        self._db.execute(
            f"INSERT OR REPLACE INTO {table} ({_COLUMNS[table]}, row_check) VALUES ({marks})",
            (*values, check_of(*values)),
        )

    def _rows(self, table: str, which: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a table, as they were written."""
        columns = _COLUMNS[table]
        with self._errors():
            rows = self._db.execute(f"SELECT row_check, {columns} FROM {table} {which}", values).fetchall()
        if any(check != check_of(*row) for check, *row in rows):
            raise self.damaged(f"a row of its {table} is not what was written")
        return [tuple(row) for _, *row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            self._next_job = self.job
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            self.job = self._next_job

    def _in_use(self) -> UsageError:
        problem = f"{self.path} is in use: another process is working on this batch."
        return UsageError(problem, "Let it finish, or end it first.")

    def damaged(self, reason: str) -> PenstockError:
        """The error of a database that is not what was written; SQLite may quote it at length."""
        reason = "".join(c if c.isprintable() else "?" for c in " ".join(reason.split())[:150])
        return PenstockError(
            f"{self.path} is damaged, or no state of a batch: {reason}.",
            "Delete it, and what was written beside it, to begin anew.",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise self._in_use() from error
            if any(reason in str(error) for reason in _OF_THE_DISK):
                raise PenstockError(f"{self.path} cannot be read or written: {error}.", GO_ON) from error
            raise self.damaged(str(error)) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:  # a message may quote what is no text any more
            raise self.damaged(str(error)) from error

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_of_job(rows: dict[str, str]) -> str:
    """Of names and values."""
    return str(check_of(*sorted(rows.items(), key=ascii)))
