"""Logs that nobody but a forger writes: every checksum is right, and what the records say is not.

Each either works or is refused with an error of its own; and the model answers afterwards as if nobody had tried.
"""

from __future__ import annotations

import copy
import json
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.thorough import examples
from penstock import LLM, SamplingParams, Session
from penstock.errors import NumericsError, PenstockError, SessionError
from penstock.sessions.log import SessionLog, SessionWarning

pytestmark = pytest.mark.usefixtures("no_fsync")

PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=4, ignore_eos=True, stop=("never said",))
AFTER = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
HUGE = 10**30


@dataclass
class Forged:
    """A record as it is to be written, whatever it says."""

    kind: str
    meta: Any
    payload: bytes = b""
    raw: bytes | None = field(default=None, repr=False)
    """In place of `meta`."""


def written(records: list[Forged]) -> bytes:
    """A log of these records, all checksums and numbers right."""
    parts = [b"penstock session 1\n"]
    for number, record in enumerate(records):
        meta = json.dumps(record.meta).encode() if record.raw is None else record.raw
        head = struct.pack("<4s4sIIQ", b"\x93rec", record.kind.encode(), number, len(meta), len(record.payload))
        parts += [head, xxhash.xxh3_64(head + meta).intdigest().to_bytes(8, "little"), meta]
        parts += [record.payload, xxhash.xxh3_64(record.payload).intdigest().to_bytes(8, "little")]
    return b"".join(parts)


def records_of(path: Path) -> list[Forged]:
    log = SessionLog(path)
    try:
        return [Forged(r.kind, r.meta, b"".join(log.payload(r, 1 << 20))) for r in log.replay()]
    finally:
        log.close()


@dataclass(frozen=True)
class Talks:
    """Honest sessions to begin with, and what the model answers while nobody has forged anything."""

    records: dict[str, list[Forged]]
    expected: list[int]


def answer(llm: LLM) -> list[int]:
    return llm.generate([[5, 6, 7]], AFTER)[0].token_ids


@pytest.fixture(scope="module")
def talks(llm: LLM, no_fsync: None, tmp_path_factory: pytest.TempPathFactory) -> Talks:
    """A text and a conversation, each with a turn that has ended and been told, and one that a kill cut off."""
    records = {}
    for name in ("text", "conversation"):
        path = tmp_path_factory.mktemp("talks") / name
        with Session(llm, path) as session:
            say = session.complete if name == "text" else session.ask
            list(say("def add(", PARAMS))
            session.told()
            pieces = say("def mul(", replace(PARAMS, max_tokens=6))
            next(pieces), next(pieces)
            (path.with_suffix(".cut")).write_bytes(path.read_bytes())
        records[name] = records_of(path.with_suffix(".cut"))
    return Talks(records, answer(llm))


def check(llm: LLM, path: Path, talks: Talks, records: list[Forged]) -> PenstockError | None:
    """Open a log and go on with it, as far as that goes; the error that ended it. No other error comes, and nothing
    of it is left in the model."""
    path.write_bytes(written(records))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SessionWarning)
            use(llm, path)
    except PenstockError as error:
        return error
    finally:
        engine = llm.engine
        assert (engine.scheduler.active, list(engine.scheduler.waiting)) == ([], [])
        assert answer(llm) == talks.expected
    return None


def use(llm: LLM, path: Path) -> None:
    with Session(llm, path) as session:
        assert all(type(token) is int and 0 <= token < llm.config.vocab_size for token in session.tokens)
        list(session.go_on() if session.unfinished else session.retell())
        say = session.ask if session.messages else session.complete
        list(say("x", AFTER))
        "".join(str(message["content"]) for message in session.messages).encode()


TOKENS = (HUGE, -1, -HUGE, 2**31, 2**63, 4096, True, 1.0, 0.5, "7", None, [1], {}, float("nan"))


class TestTokens:
    @pytest.mark.parametrize("token", TOKENS, ids=str)
    def test_that_were_never_drawn(self, llm: LLM, tmp_path: Path, talks: Talks, token: object) -> None:
        records = copy.deepcopy(talks.records["text"])
        records[-1].meta["drawn"] = [token]
        assert isinstance(check(llm, tmp_path / "talk", talks, records), SessionError)

    @pytest.mark.parametrize("token", TOKENS, ids=str)
    def test_that_no_prompt_has(self, llm: LLM, tmp_path: Path, talks: Talks, token: object) -> None:
        records = copy.deepcopy(talks.records["text"])
        records[1].meta["prompt"][1] = token
        assert isinstance(check(llm, tmp_path / "talk", talks, records), SessionError)

    def test_of_another_kind_are_told_by_name(self, llm: LLM, tmp_path: Path, talks: Talks) -> None:
        records = copy.deepcopy(talks.records["text"])
        records[-1].meta["drawn"] = [HUGE]
        told = str(check(llm, tmp_path / "talk", talks, records))
        assert told == f"{tmp_path}/talk has intact records that make no sense together.\nBegin another session."


def test_honest_ones_work(llm: LLM, tmp_path: Path, talks: Talks) -> None:
    for records in talks.records.values():
        assert check(llm, tmp_path / "talk", talks, records) is None


NUMBERS = [
    -HUGE,
    -1,
    0,
    1,
    2,
    7,
    4095,
    4096,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    HUGE,
    10**400,
    0.0,
    0.5,
    2.5,
    -1e308,
    1e308,
]
OTHERS = [None, True, False, float("nan"), float("inf"), "", "7", "stop", "x" * 3000, "\ud800", "\x1b[2J\0"]
SHAPES = [[], [HUGE], [-1], [True], [0.5], ["a"], [None], [[1]], [""], ["\udcff"], {}, {"a": 1}, {"role": "user"}]
VALUES = st.sampled_from([*NUMBERS, *OTHERS, *SHAPES]) | st.integers() | st.lists(st.integers(0, 4095), max_size=9)


def places(value: object, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything in a JSON value: the keys and indices that lead there; of long lists the ends."""
    yield here
    keys: Any = value if isinstance(value, dict) else ()
    if isinstance(value, list):
        keys = sorted({0, 1, len(value) - 1} & set(range(len(value))))
    for key in keys:
        yield from places(value[key], (*here, key))  # type: ignore[index]


def put(record: Forged, place: tuple[Any, ...], value: object) -> None:
    if not place:
        record.meta = value
        return
    there = record.meta
    for key in place[:-1]:
        there = there[key]
    there[place[-1]] = value


def change(draw: Any, records: list[Forged]) -> None:
    """Have one record say, or hold, something else, or let one be missing, come twice, or come too early."""
    last = range(max(0, len(records) - 3), len(records))  # what comes later counts more
    number = draw(st.sampled_from([*range(len(records)), *last, *last, *last]))
    record = records[number]
    what = draw(st.sampled_from(["field"] * 8 + ["payload", "kind", "missing", "added", "order"]))
    if what == "field":
        here = list(places(record.meta))
        key = draw(st.sampled_from(sorted({place[:1] for place in here})))  # a long prompt is no likelier than a number
        put(record, draw(st.sampled_from([place for place in here if place[:1] == key])), draw(VALUES))
    elif what == "payload":
        size = draw(st.sampled_from([0, 1, 1535, 1536, 1537, 3072, 40 * 1536]))
        record.payload = (record.payload or b"\x7f")[:1] * size
    elif what == "kind":
        record.kind = draw(st.sampled_from(["mod ", "turn", "pass", "told", "what"]))
    elif what == "missing" and isinstance(record.meta, dict) and record.meta:
        del record.meta[draw(st.sampled_from(sorted(record.meta)))]
    elif what == "added" and isinstance(record.meta, dict):
        record.meta["more"] = draw(VALUES)
    elif what == "order":
        records.insert(draw(st.integers(0, len(records))), copy.deepcopy(record))
        if draw(st.booleans()):
            del records[number]


@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_a_log_says(llm: LLM, tmp_path: Path, talks: Talks, data: st.DataObject) -> None:
    records = copy.deepcopy(talks.records[data.draw(st.sampled_from(sorted(talks.records)))])
    for _ in range(data.draw(st.integers(1, 2))):
        change(data.draw, records)
    check(llm, tmp_path / "talk", talks, records)


@pytest.mark.parametrize("kind", ["mod ", "pass"])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"7",
        b'"a"',
        b"[]",
        b"{",
        b"\xff\xfe",
        "{}".encode("utf-16"),
        b'{"at": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"at":' + b"9" * 5000 + b"}",
    ],
    ids=lambda raw: str(raw[:10]),
)
def test_what_is_no_object(llm: LLM, tmp_path: Path, talks: Talks, kind: str, raw: bytes) -> None:
    records = copy.deepcopy(talks.records["text"])
    next(record for record in records if record.kind == kind).raw = raw
    assert isinstance(check(llm, tmp_path / "talk", talks, records), SessionError)


def test_keys_that_no_pass_computed(llm: LLM, tmp_path: Path, talks: Talks) -> None:
    """What comes of them are no numbers, or not those of the position that is computed again."""
    records = copy.deepcopy(talks.records["text"])
    for record in records:
        record.payload = b"\xff" * len(record.payload)  # NaN, all of them
    assert isinstance(check(llm, tmp_path / "talk", talks, records), (SessionError, NumericsError))
