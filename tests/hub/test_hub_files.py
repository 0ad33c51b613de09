from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.hub_server import TOKEN, Faults, Hub, Repo, serve
from penstock.errors import CheckpointError
from penstock.hub import files as hub_files
from penstock.hub.files import HubSource, Patience, _asked_to_wait, _requests
from penstock.hub.repository import find_repository

SIZE = 300_000
DATA = np.random.default_rng(0).bytes(SIZE)
QUICK = Patience(attempts=3, first_wait=0.01, longest_wait=0.02)
RANGES = [(250_000, 50_000), (0, 100_000), (100_000, 1), (100_001, 99_999)]


@pytest.fixture(scope="module")
def one_hub() -> Iterator[Hub]:
    repo = Repo()
    repo.commit({"model.safetensors": DATA, "config.json": b"{}"})
    with serve({}, {"owner/model": repo}) as hub:
        yield hub


@pytest.fixture
def hub(one_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    one_hub.use(monkeypatch)
    monkeypatch.setattr(hub_files, "REQUEST_BYTES", 1 << 16)
    one_hub.faults = Faults()
    one_hub.gated.clear()
    for seen in (one_hub.tokens, one_hub.store_tokens, one_hub.requests, one_hub.store_requests):
        seen.clear()
    return one_hub


def source(name: str = "model.safetensors") -> HubSource:
    repository = find_repository("owner/model")
    return HubSource(repository, repository.files[name], QUICK)


def wanted(ranges: list[tuple[int, int]] = RANGES) -> list[bytes]:
    return [DATA[begin : begin + nbytes] for begin, nbytes in ranges]


def test_ranges_come_in_the_order_asked_for(hub: Hub) -> None:
    assert [bytes(data) for data in source().ranges(RANGES)] == wanted()
    assert sorted(str(asked) for _, asked in hub.store_requests) == [
        "bytes=0-65535",
        "bytes=131072-196607",
        "bytes=196608-199999",
        "bytes=250000-299999",
        "bytes=65536-131071",
    ]


def test_the_token_stays_with_the_hub(hub: Hub) -> None:
    list(source().ranges(RANGES))
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert hub.store_tokens == [None] * 5


def test_the_hub_is_not_asked_again_for_the_way(hub: Hub) -> None:
    file = source()
    for _ in range(5):
        assert [bytes(data) for data in file.ranges([(0, 10)])] == [DATA[:10]]
    assert (len(hub.requests), len(hub.store_requests)) == (1, 5)


def test_a_permission_that_has_ended(hub: Hub) -> None:
    file = source()
    list(file.ranges([(0, 10)]))
    hub.faults.store_statuses = [(403, {})]
    assert [bytes(data) for data in file.ranges([(5, 10)])] == [DATA[5:15]]
    assert (len(hub.requests), len(hub.store_requests)) == (2, 3)


def test_a_small_file_is_not_redirected(hub: Hub) -> None:
    assert [bytes(data) for data in source("config.json").ranges([(0, 2)])] == [b"{}"]
    assert hub.store_tokens == []


def test_nothing_asked_for(hub: Hub) -> None:
    assert [bytes(data) for data in source().ranges([(5, 0)])] == [b""]
    assert list(source().ranges([])) == []
    assert hub.requests == []


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=8))
def test_requests_are_the_ranges(ranges: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_files, "REQUEST_BYTES", 7)
        requests = _requests(ranges)
    assert all(0 < end - begin <= 7 for begin, end in requests)
    flat = [place for begin, nbytes in ranges for place in range(begin, begin + nbytes)]
    assert [place for begin, end in requests for place in range(begin, end)] == flat


def test_cut_connections_go_on_where_they_broke(hub: Hub) -> None:
    hub.faults.cuts = [0, 1, 1000, 100, 3]
    hub.sent = 0
    assert [bytes(data) for data in source().ranges(RANGES)] == wanted()
    assert hub.faults.cuts == []
    assert hub.sent == sum(len(data) for data in wanted())
    assert len(hub.store_requests) == 5 + 5


def test_progress_renews_the_patience(hub: Hub) -> None:
    hub.faults.cuts = [10] * 20
    assert bytes(next(source().ranges([(0, 1000)]))) == DATA[:1000]


def test_a_hub_that_is_busy(hub: Hub) -> None:
    hub.faults.statuses = [
        (429, {"Retry-After": "0"}),
        (503, {}),
        (500, {}),
        (429, {"RateLimit": '"resolvers";r=0;t=0'}),
    ]
    assert [bytes(data) for data in source().ranges(RANGES)] == wanted()


def test_troubles_are_told(hub: Hub) -> None:
    hub.faults.statuses = [(503, {})] * 3
    told: list[str] = []
    repository = find_repository("owner/model")
    list(HubSource(repository, repository.files["model.safetensors"], QUICK, told.append).ranges([(0, 10)]))
    assert told == ["model.safetensors of owner/model: status 503; trying again in 0 s"] * 2


def test_patience_ends(hub: Hub) -> None:
    hub.faults.statuses = [(503, {})] * 4
    with pytest.raises(CheckpointError) as caught:
        list(source().ranges([(0, 10)]))
    said = "model.safetensors of owner/model cannot be downloaded: tried 4 times in vain: status 503"
    assert (caught.value.problem, caught.value.remedy) == (
        said,
        "Check the network; the same command goes on from here.",
    )


def test_a_connection_that_is_always_cut(hub: Hub) -> None:
    hub.faults.cuts = [0] * 4
    with pytest.raises(CheckpointError, match="tried 4 times in vain: "):
        list(source().ranges([(0, 10)]))


@pytest.mark.parametrize(
    ("faults", "what"),
    [
        ({"ignore_range": True}, "ignores the range that is asked for"),
        ({"shift": 1}, "answered the request for bytes 0-9 of 300000 with 'bytes 1-10/300000'"),
        ({"total": 300_001}, "answered the request for bytes 0-9 of 300000 with 'bytes 0-9/300001'"),
        ({"encoding": "gzip"}, "encoded the bytes as 'gzip'"),
        ({"other_commit": True}, "sent a file of another commit than {commit}"),
        ({"linked_etag": "0" * 64}, "has a file of SHA-256 " + "0" * 64 + " there, but lists {sha256}"),
        (
            {"etags": ["one", "two"]},
            "changed the file in the middle of the download: its ETag was 'one', now 'two'",
        ),
    ],
)
def test_answers_that_are_not_what_was_asked_for(hub: Hub, faults: dict[str, object], what: str) -> None:
    hub.faults = Faults(**faults)  # type: ignore[arg-type]
    file = source()
    with pytest.raises(CheckpointError) as caught:
        _ = [list(file.ranges([bounds])) for bounds in ((0, 10), (10, 10))]
    repository = find_repository("owner/model")
    what = what.format(commit=repository.commit, sha256=repository.files["model.safetensors"].sha256)
    assert caught.value.problem == f"model.safetensors of owner/model: {hub.url} {what}"
    assert caught.value.remedy == "Try again; if that changes nothing, check HF_ENDPOINT and any proxy between."


def test_a_file_shorter_than_listed(hub: Hub) -> None:
    repository = find_repository("owner/model")
    file = HubSource(repository, repository.files["model.safetensors"], QUICK)
    file.size = SIZE + 10
    with pytest.raises(CheckpointError, match="has no bytes 300000-300009"):
        list(file.ranges([(SIZE, 10)]))


def test_a_gated_file(hub: Hub) -> None:
    file = source()
    hub.gated.add("owner/model")
    with pytest.raises(CheckpointError) as caught:
        list(file.ranges([(0, 10)]))
    assert caught.value.problem == "owner/model is gated: only those who have accepted its licence may have it."
    assert caught.value.remedy.startswith(f"Accept it on {hub.url}/owner/model, then log in")


def test_a_file_that_is_gone(hub: Hub) -> None:
    file = source()
    file.name = "gone.safetensors"
    with pytest.raises(CheckpointError, match=r"^owner/model on http://\S+ has no gone.safetensors"):
        list(file.ranges([(0, 10)]))


def test_a_status_that_means_nothing(hub: Hub) -> None:
    hub.faults.statuses = [(402, {})]
    with pytest.raises(CheckpointError, match="answered with status 402"):
        list(source().ranges([(0, 10)]))


def test_requests_ahead_are_bounded_and_end_with_their_reader(hub: Hub) -> None:
    reader = source().ranges([(0, SIZE)] * 20)
    next(reader)
    before = threading.active_count()
    assert len(hub.store_requests) <= 1 + 2 * hub_files.CONNECTIONS
    reader.close()
    for thread in threading.enumerate():
        if thread.daemon and "_work" in thread.name:
            thread.join(30)
    assert threading.active_count() < before


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "9" * 40}, 0.0),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55.0),
    ],
)
def test_what_a_server_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert _asked_to_wait(headers) == seconds


def test_a_date_to_wait_for() -> None:
    until = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=1000), usegmt=True)
    assert 900 < _asked_to_wait({"Retry-After": until}) <= 1000
