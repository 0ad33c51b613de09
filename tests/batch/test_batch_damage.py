"""Bits that turn in what a batch keeps: told, or of no consequence; the results are never wrong in silence.

`python tools/fuzz/batch_bits.py` turns all of them.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from helpers.batch_damage import FRAME, LOG, OUT, PAGE, STATE, begin, copy_pages, flip, told
from helpers.batches import run_batch, write_requests
from penstock.batch.state import State
from penstock.errors import PenstockError

GOLDEN = Path(__file__).parents[1] / "golden" / "batch"
HEADERS = 120
"""Bytes of a page that may be headers, and pointers to its cells."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch that an error ended: all of it is in the database."""
    folder = tmp_path_factory.mktemp("ended")
    begin(folder, killed=False)
    assert not (folder / LOG).exists()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was killed: most of it is in SQLite's log."""
    folder = tmp_path_factory.mktemp("killed")
    begin(folder, killed=True)
    assert (folder / "killed" / LOG).stat().st_size > 10 * FRAME
    return folder / "killed"


@pytest.mark.parametrize("file", [STATE, OUT])
def test_without_damage(ended: Path, killed: Path, tmp_path: Path, file: str) -> None:
    assert not told(ended, tmp_path / "case", file, lambda data: None)
    assert not told(killed, tmp_path / "case", file, lambda data: None)


def test_a_bit_of_any_page(ended: Path, tmp_path: Path) -> None:
    """Of headers, pointers to rows, rows of every table, and what is free."""
    rng, size = random.Random(1), (ended / STATE).stat().st_size
    for page in range(size // PAGE):
        bits = [*rng.sample(range(8 * HEADERS), 12), *rng.sample(range(8 * PAGE), 12)]
        assert sum(told(ended, tmp_path / "case", STATE, flip(page * PAGE * 8 + bit)) for bit in bits) > 0


def test_letters_of_the_tables_that_are_none(ended: Path, tmp_path: Path) -> None:
    """SQLite quotes them in its error, which is no UTF-8 then."""
    at = (ended / STATE).read_bytes().index(b"CREATE TABLE lines")
    for byte in range(at, at + 200, 7):
        told(ended, tmp_path / "case", STATE, flip(8 * byte + 7))


def test_a_bit_of_the_log(killed: Path, tmp_path: Path) -> None:
    """It takes back passes, which is of no consequence: they come again."""
    rng, size = random.Random(2), (killed / LOG).stat().st_size
    for bit in [*range(0, 32 * 8, 11), *rng.sample(range(8 * size), 40)]:
        assert not told(killed, tmp_path / "case", LOG, flip(bit))


def test_a_bit_of_the_log_amid_a_checkpoint(killed: Path, tmp_path: Path) -> None:
    """Some pages of the database are newer than others then."""
    rng, outcomes = random.Random(3), set()
    for _ in range(40):
        folder = tmp_path / "begun"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(killed, folder)
        copy_pages(folder, {page for page in range(1, 20) if rng.random() < 0.5})
        assert not told(folder, tmp_path / "case", LOG, lambda data: None)
        outcomes.add(told(folder, tmp_path / "case", LOG, flip(rng.choice([5, rng.randrange(8 * FRAME)]))))
    assert True in outcomes


def test_a_bit_of_the_results(ended: Path, tmp_path: Path) -> None:
    rng, size = random.Random(4), (ended / OUT).stat().st_size
    for bit in rng.sample(range(8 * size), 40):
        assert told(ended, tmp_path / "case", OUT, flip(bit))


def test_tokens_that_are_missing(tmp_path: Path) -> None:
    """Those that follow would be taken for earlier ones."""
    path = write_requests(tmp_path / "in.jsonl", (GOLDEN / "requests.jsonl").read_bytes().splitlines())
    shutil.copytree(GOLDEN / "format-1", tmp_path, dirs_exist_ok=True)
    with State(tmp_path / "out.jsonl.state") as state:
        state._db.execute("DELETE FROM drawn WHERE number = 2 AND first = 3")
    with pytest.raises(PenstockError, match=r"out.jsonl.state is damaged.*line 2 lacks tokens from number 3 on"):
        run_batch(path, tmp_path / "out.jsonl")


class TestFormat:
    def test_one_that_an_earlier_version_began(self, tmp_path: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", (GOLDEN / "requests.jsonl").read_bytes().splitlines())
        shutil.copytree(GOLDEN / "format-1", tmp_path, dirs_exist_ok=True)
        summary = run_batch(path, tmp_path / "out.jsonl")
        assert summary.tokens > summary.drawn > 0
        assert (tmp_path / "out.jsonl").read_bytes() == (GOLDEN / "results.jsonl").read_bytes()

    def test_it_has_checksums_from_then_on(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "format-1", tmp_path, dirs_exist_ok=True)
        for _ in range(2):
            with State(tmp_path / "out.jsonl.state") as state:
                assert state.job is not None
                assert (state.job["format"], state.job["lines"]) == (2, state.counts().total)
                assert len(state.drawn(2)[0]) == 20

    def test_one_of_a_later_version(self, tmp_path: Path) -> None:
        with State(tmp_path / "state") as state:
            state.begin({}, [])
            with state._transaction():
                state._set_job({**(state.job or {}), "format": 3})
        with pytest.raises(PenstockError, match=r"state has format 3; this is a Penstock for format 2\.\nGo on with"):
            State(tmp_path / "state")

    @pytest.mark.parametrize(
        "change", ["DELETE FROM job WHERE name = 'phase'", "UPDATE job SET value = '2'", "DROP TABLE job"]
    )
    def test_a_job_that_is_not_what_was_written(self, ended: Path, tmp_path: Path, change: str) -> None:
        shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
        with State(tmp_path / STATE) as state:
            state._db.execute(change)
        with pytest.raises(PenstockError, match=r"state is damaged, or no state of a batch: .*\.\nDelete it"):
            State(tmp_path / STATE)

    @pytest.mark.parametrize(
        "change", ["DELETE FROM lines WHERE number = 9", "UPDATE lines SET failed = 1", "DROP TABLE lines"]
    )
    def test_lines_that_are_not_what_was_written(self, ended: Path, tmp_path: Path, change: str) -> None:
        shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
        with State(tmp_path / STATE) as state:
            state._db.execute(change)
            with pytest.raises(PenstockError, match=r"state is damaged, or no state of a batch: .*\.\nDelete it"):
                state.counts()
