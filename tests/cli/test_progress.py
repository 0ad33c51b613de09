from __future__ import annotations

import pytest

from penstock.cli.progress import Progress, fit, seconds_in_words
from penstock.completion import Stats
from penstock.events import Event, Kind
from penstock.models.pass_stats import PassTotals
from penstock.speculate.speculator import Record


def event(kind: Kind, nbytes: int = 0) -> Event:
    return Event(kind, "name", 0.0, 1.0, nbytes, 1)


def words(progress: Progress, now: float, room: int = 200) -> str:
    return fit(progress.items(now), room)


def begun(forecast: float | None = 20.0, layers: int = 4) -> Progress:
    progress = Progress(layers)
    progress.begin(100.0, forecast)
    progress.sample(100.0, 0)
    return progress


def place(progress: Progress) -> str:
    """Where the pass is: the last item while nothing is known of tokens and rates."""
    return progress.items(100.0)[-1][0]


def take_layers(progress: Progress, count: int) -> None:
    """The embedding, and so many layers."""
    for _ in range(1 + count):
        progress.take(event("part"))


def test_before_the_first_token() -> None:
    progress = begun()
    assert words(progress, 100.0) == "first token in about 20 s, layer 1/4"
    take_layers(progress, 1)
    progress.sample(105.0, 5 * 10**9)
    assert words(progress, 105.0) == "first token in about 15 s, layer 2/4, 1.00 GB/s"


@pytest.mark.parametrize(("forecast", "elapsed", "left"), [(20.0, 10.0, 10.0), (20.0, 30.0, 30.0), (None, 30.0, 30.0)])
def test_what_has_been_seen_corrects_the_forecast(forecast: float | None, elapsed: float, left: float) -> None:
    progress = begun(forecast)
    take_layers(progress, 2)
    assert progress.seconds_left(100.0 + elapsed) == pytest.approx(left)


def test_nothing_is_promised_where_nothing_is_known() -> None:
    assert words(begun(None), 100.0) == "layer 1/4"


def test_a_pass_that_read_more_than_expected_promises_no_less_than_now() -> None:
    progress = begun()
    take_layers(progress, 9)
    assert progress.seconds_left(130.0) == 0.0
    assert words(progress, 130.0).startswith("first token in about 1 s")


def test_passes_and_the_head() -> None:
    """Two passes over four layers, and a head that takes as long as two of them."""
    progress = Progress(4, 2, head_layers=2.0)
    progress.begin(100.0, None)
    take_layers(progress, 4)
    assert progress.seconds_left(108.0) == pytest.approx(12.0)
    progress.take(event("pass"))
    assert progress.seconds_left(108.0) == pytest.approx(12.0)
    take_layers(progress, 4)
    assert progress.seconds_left(116.0) == pytest.approx(4.0)


def test_before_anything_has_been_seen_the_forecast_runs_down() -> None:
    assert [begun().seconds_left(now) for now in (105.0, 120.0, 130.0)] == [15.0, 0.0, 0.0]


@pytest.mark.parametrize(("layers", "left"), [(1, 0.875 * 50), (2, 0.75 * 80), (4, 0.5 * 80)])
def test_from_a_quarter_of_the_way_on_only_what_was_seen_counts(layers: int, left: float) -> None:
    """The forecast is 20 s, and it takes 80."""
    progress = begun(20.0, layers=8)
    take_layers(progress, layers)
    assert progress.seconds_left(100.0 + 10 * layers) == pytest.approx(left)


@pytest.mark.parametrize(
    ("room", "told"), [(26, "first token in about 20 s"), (21, "first token in 20 s"), (9, "20 s left")]
)
def test_what_is_told_is_what_is_left(room: int, told: str) -> None:
    assert words(begun(), 100.0, room) == told


def test_after_the_first_token() -> None:
    progress = begun()
    progress.count(Stats(5, 0, tokens=1, seconds=10.0, first_token_seconds=10.0))
    assert words(progress, 110.0) == "layer 1/4, 1 token"
    progress.count(Stats(5, 0, tokens=3, seconds=16.0, first_token_seconds=10.0))
    assert words(progress, 116.0) == "layer 1/4, 3 s/token, 3 tokens"


def test_parts_of_a_pass() -> None:
    progress = begun(None)
    said = []
    for _ in range(6):
        progress.take(event("part"))
        said.append(place(progress))
    assert said == ["layer 1/4", "layer 2/4", "layer 3/4", "layer 4/4", "head", "head"]
    progress.take(event("pass"))
    assert place(progress) == "layer 1/4"


def test_guesses() -> None:
    progress = begun(None)
    record = Record(walks=2, nodes=9)
    log = [
        PassTotals(
            rows=1,
            seconds=1.0,
            draft_seconds=0.0,
            guesses=0,
            logits=True,
            bytes_read=0,
            read_seconds=0.0,
            wait_seconds=0.0,
            compute_seconds=1.0,
        )
    ]
    progress.count(Stats(5, 0, tokens=9, seconds=18.0, first_token_seconds=10.0, log=log * 2, guesses=record))
    assert words(progress, 118.0) == "layer 1/4, 1 s/token, 4.5 tokens/pass, 9 tokens"


@pytest.mark.parametrize(("seconds", "told"), [(2.0, True), (0.01, False)])
def test_guessing_is_told_where_it_takes_time(seconds: float, told: bool) -> None:
    progress = begun(None)
    progress.take(event("pass"))
    assert place(progress) == "layer 1/4", "it is not known yet"
    progress.take(Event("draft", "9 guesses", 0.0, seconds, 0, 1))
    progress.take(event("part"))
    assert place(progress) == "layer 1/4"
    progress.take(event("pass"))
    assert progress.guessing == told
    assert place(progress) == ("guessing" if told else "layer 1/4")
    progress.take(Event("draft", "9 guesses", 0.0, seconds, 0, 1))
    assert place(progress) == "layer 1/4"


def test_the_rate_is_of_the_last_seconds() -> None:
    progress = begun(None)
    for second in range(11):
        progress.sample(100.0 + second, 10**9 * (second if second < 5 else 5 + 3 * (second - 5)))
    assert words(progress, 110.0) == "layer 1/4, 3.00 GB/s"


def test_nothing_read_has_no_rate() -> None:
    progress = begun(None)
    progress.sample(101.0, 0)
    assert words(progress, 101.0) == "layer 1/4"


@pytest.mark.parametrize(
    ("room", "line"),
    [
        (40, "one of forty, two, three"),
        (14, "one of forty"),
        (11, "one, two"),
        (8, "one, two"),
        (5, "one"),
        (2, ""),
    ],
)
def test_what_fits(room: int, line: str) -> None:
    assert fit([("one of forty", "one"), ("two",), ("three",)], room) == line


def test_seconds_in_words() -> None:
    assert [seconds_in_words(s) for s in (0.2, 29.4, 119, 200)] == ["1 s", "29 s", "119 s", "3 min 20 s"]
