"""What a batch has done so far, on the disk after every pass: a small database beside the results.

Results are in the database first, then in their file: a kill between the two loses neither. One transaction a pass
takes in the tokens that it drew and the results that it finished; with `synchronous=FULL` it outlives a power failure.
The database is held by one process at a time, until that ends, however it ends.

Source: sqlite.org, "Write-Ahead Logging" (without shared memory in exclusive mode) and "Atomic Commit".
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.batch.requests import Line
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

FORMAT = 1
GO_ON = "Make room or check the disk, and give the same command again: it goes on from here."

_TABLES = """
CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE lines (
    number INTEGER PRIMARY KEY, offset INTEGER, nbytes INTEGER, digest BLOB,
    first_of_id INTEGER,    -- an earlier line that has the same custom_id
    failed INTEGER,         -- NULL while there is no result
    out_offset INTEGER, out_nbytes INTEGER, tokens INTEGER
);
CREATE INDEX to_do ON lines (number) WHERE failed IS NULL;
CREATE TABLE unwritten (number INTEGER PRIMARY KEY, out_offset INTEGER, record BLOB);
CREATE TABLE drawn (
    number INTEGER, choice INTEGER, first INTEGER, content TEXT, PRIMARY KEY (number, choice, first)
) WITHOUT ROWID;
CREATE TABLE ids (custom_id TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID;
"""


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
    """The database; a context manager that lets go of it. Raises PenstockError where its disk fails or is full."""

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
        with self._errors():
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            has_tables = self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'job'").fetchone()[0]
            self._db.execute("COMMIT")
        if not self.path.exists():
            raise self._in_use()
        self.job: dict[str, Any] | None = None
        """What is being done; None where nothing has begun."""
        if has_tables:
            with self._errors():
                self.job = {name: json.loads(value) for name, value in self._db.execute("SELECT * FROM job")}

    def begin(self, job: dict[str, Any], lines: Iterable[tuple[Line, str | None]]) -> None:
        """Note what is to be done: all of it, or nothing where this is interrupted. `lines`: with their custom_ids."""
        with self._transaction():
            for table in ("job", "lines", "unwritten", "drawn", "ids"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _TABLES.split(";\n"):
                self._db.execute(statement)
            for line, custom_id in lines:
                self._add(line, custom_id)
            self._db.execute("DROP TABLE ids")
            job = job | {"format": FORMAT, "phase": "running", "out_bytes": 0}
            self._db.executemany("INSERT INTO job VALUES (?, ?)", [(k, json.dumps(v)) for k, v in job.items()])
        self.job = job

    def _add(self, line: Line, custom_id: str | None) -> None:
        first = None
        if custom_id is not None:
            new = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, line.number)).rowcount
            if not new:
                (first,) = self._db.execute("SELECT number FROM ids WHERE custom_id = ?", (custom_id,)).fetchone()
        self._db.execute(
            "INSERT INTO lines (number, offset, nbytes, digest, first_of_id) VALUES (?, ?, ?, ?, ?)",
            (line.number, line.offset, line.nbytes, line.digest, first),
        )

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
        with self._errors():
            rows = self._db.execute(
                "SELECT number, offset, nbytes, digest, first_of_id FROM lines"
                " WHERE failed IS NULL AND number > ? ORDER BY number LIMIT ?",
                (after, most),
            ).fetchall()
        return [ToDo(Line(*row[:4]), row[4]) for row in rows]

    def drawn(self, number: int) -> list[list[str]]:
        """What was drawn for a line so far: of each of its choices, what each pass brought."""
        with self._errors():
            rows = self._db.execute(
                "SELECT choice, content FROM drawn WHERE number = ? ORDER BY choice, first", (number,)
            ).fetchall()
        choices: list[list[str]] = [[] for _ in range(1 + max((choice for choice, _ in rows), default=-1))]
        for choice, content in rows:
            choices[choice].append(content)
        return choices

    def counts(self) -> Counts:
        with self._errors():
            row = self._db.execute(
                "SELECT count(*), count(failed), coalesce(sum(failed), 0), coalesce(sum(tokens), 0) FROM lines"
            ).fetchone()
        return Counts(*row)

    def longest_line(self) -> int:
        """Bytes."""
        with self._errors():
            return int(self._db.execute("SELECT coalesce(max(nbytes), 0) FROM lines").fetchone()[0])

    def commit(self, drawn: Iterable[Drawn], results: Sequence[Result]) -> None:
        """Take in what a pass brought; the results of earlier ones have to be in their file by now."""
        position = self._out_bytes
        with self._transaction():
            self._db.execute("DELETE FROM unwritten")
            self._db.executemany(
                "INSERT OR REPLACE INTO drawn VALUES (?, ?, ?, ?)",
                [(d.number, d.choice, d.first, d.content) for d in drawn],
            )
            for result in results:
                self._take(result, position)
                position += len(result.record)
            self._set("out_bytes", position)
        self._job["out_bytes"] = position

    def _take(self, result: Result, position: int) -> None:
        self._db.execute("INSERT INTO unwritten VALUES (?, ?, ?)", (result.number, position, result.record))
        self._db.execute("DELETE FROM drawn WHERE number = ?", (result.number,))
        self._db.execute(
            "UPDATE lines SET failed = ?, out_offset = ?, out_nbytes = ?, tokens = ? WHERE number = ?",
            (int(result.failed), position, len(result.record), result.tokens, result.number),
        )

    def unwritten(self) -> tuple[int, list[bytes]]:
        """Where the latest results belong in their file, and the results; they may be there or not."""
        with self._errors():
            rows = self._db.execute("SELECT out_offset, record FROM unwritten ORDER BY out_offset").fetchall()
        return (rows[0][0] if rows else self._out_bytes), [record for _, record in rows]

    def places(self) -> Iterator[tuple[int, int]]:
        """Offset and size of every result in its file, in the order of the requests."""
        after = 0
        while rows := self._places(after):
            yield from ((offset, nbytes) for _, offset, nbytes in rows)
            after = rows[-1][0]

    def _places(self, after: int) -> list[tuple[int, int, int]]:
        with self._errors():
            return self._db.execute(
                "SELECT number, out_offset, out_nbytes FROM lines WHERE number > ? ORDER BY number LIMIT 1000", (after,)
            ).fetchall()

    def set_phase(self, phase: str) -> None:
        """Note which of the last steps is reached."""
        with self._transaction():
            self._set("phase", phase)
        self._job["phase"] = phase

    def close(self) -> None:
        self._db.close()

    def remove(self) -> None:
        """Delete the database."""
        if os.name == "nt":
            self.close()
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

    def _set(self, name: str, value: object) -> None:
        self._db.execute("UPDATE job SET value = ? WHERE name = ?", (json.dumps(value), name))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _in_use(self) -> UsageError:
        problem = f"{self.path} is in use: another process is working on this batch."
        return UsageError(problem, "Let it finish, or end it first.")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise self._in_use() from error
            raise PenstockError(f"{self.path} cannot be read or written: {error}.", GO_ON) from error
        except sqlite3.DatabaseError as error:
            raise PenstockError(
                f"{self.path} is damaged, or no state of a batch: {error}.",
                "Delete it, and what was written beside it, to begin anew.",
            ) from error

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
