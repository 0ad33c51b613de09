"""A batch that was killed, bits that turn in what it keeps, and what becomes of it when it goes on; without a model."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from penstock.batch.requests import Line
from penstock.batch.results import ResultFile, ordered_path, write_in_order
from penstock.batch.state import Drawn, Result, State
from penstock.errors import PenstockError

LINES = 60
PAGE = 4096
FRAME = 24 + PAGE
"""Bytes of a page in SQLite's log, whose header has 32."""
STATE, LOG, OUT = "out.state", "out.state-wal", "out"
"""The database, its log, and the results."""


class Crash(BaseException):
    """The process is no more."""


def record(number: int) -> bytes:
    return b'{"id": %d, "text": "%s"}\n' % (number, b"abc" * (number * 31 % 400))


def drawn(number: int) -> list[list[str]]:
    return [[f"[[{number}, {choice}, {first}], []]" for first in range(3)] for choice in range(2)]


def first_of_id(number: int) -> int | None:
    """Some lines have the custom_id of the line before."""
    return number - 1 if number % 5 == 4 else None


def lines() -> Iterator[tuple[Line, str]]:
    for number in range(1, LINES + 1):
        yield Line(number, number * 100, 100, number.to_bytes(16, "little")), f"request-{first_of_id(number) or number}"


EXPECTED = b"".join(map(record, range(1, LINES + 1)))


def begin(folder: Path, *, killed: bool) -> None:
    """A batch that did not end: lines 2 to 31 have results, the last two of which are not in their file; the others
    have tokens. One that is `killed` is in the folder of that name, most of it in SQLite's log."""
    with State(folder / STATE) as state, ResultFile(folder / OUT, 0, []) as out:
        state.begin({"name": "a"}, lines())
        for first in range(2, 32, 2):
            going_on = range(first + 30, min(first + 32, LINES + 1))
            news = [Drawn(n, c, f, drawn(n)[c][f]) for n in going_on for c in range(2) for f in range(3)]
            ended = [Result(number, record(number), False, number) for number in (first, first + 1)]
            state.commit(news, ended)
            if first < 30:
                out.append(result.record for result in ended)
        if killed:
            shutil.copytree(folder, folder / "killed")


def go_on(folder: Path) -> bytes:
    """The results in order, once every line has one. Fails where anything that was written comes back as another."""
    finish(folder)
    return ordered_path(folder / OUT).read_bytes()


def finish(folder: Path) -> None:
    """What `go_on` does; the results are in their file."""
    with State(folder / STATE) as state:
        assert state.job is not None
        assert state.job["name"] == "a"
        state.counts()
        with ResultFile(folder / OUT, *state.unwritten()) as out:
            to_do = state.to_do(0, LINES + 1)
            for one in to_do:
                number = one.line.number
                assert one.line == Line(number, number * 100, 100, number.to_bytes(16, "little"))
                assert one.first_of_id == first_of_id(number)
                for choice, parts in enumerate(state.drawn(number)):
                    if [part.first for part in parts] != list(range(len(parts))):
                        raise state.damaged("tokens are missing")  # as a worker does
                    assert [part.content for part in parts] == drawn(number)[choice][: len(parts)]
            ended = [Result(one.line.number, record(one.line.number), False, 1) for one in to_do]
            state.commit([], ended)
            out.append(result.record for result in ended)
        write_in_order(folder / OUT, state.places())


def told(begun: Path, folder: Path, file: str, damage: Callable[[bytearray], object]) -> bool:
    """Whether a batch tells of damage; fails where it doesn't, and the results are not what they would have been."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(begun, folder)
    data = bytearray((folder / file).read_bytes())
    damage(data)
    (folder / file).write_bytes(data)
    said = None
    try:
        assert go_on(folder) == EXPECTED
    except PenstockError as error:
        said = error
    assert said is None or (str(folder / OUT) in said.problem and len(str(said).splitlines()) == 2)
    return said is not None


def flip(bit: int) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        data[bit // 8] ^= 1 << bit % 8

    return damage


def copy_pages(folder: Path, pages: set[int]) -> None:
    """Some pages of the log as they are at its end, in their places in the database: a checkpoint that was killed."""
    log, database = (folder / LOG).read_bytes(), bytearray((folder / STATE).read_bytes())
    for begin in range(32, len(log), FRAME):
        (number,) = struct.unpack_from(">I", log, begin)
        if number in pages:
            end = number * PAGE
            database.extend(bytes(max(0, end - len(database))))
            database[end - PAGE : end] = log[begin + 24 : begin + FRAME]
    (folder / STATE).write_bytes(database)
