from __future__ import annotations

import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.thorough import quick
from penstock.benchmarks.plot import LastPass, PassPicture, check_plot, draw, merged, without
from penstock.errors import PenstockError, UsageError
from penstock.events import Event

PASS = Event("pass", "1 rows", 10.0, 14.0, 0, 1)
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda span: (span[0], span[0] + span[1])))


def read(begin: float, end: float, nbytes: int = 1000, thread: int = 2) -> Event:
    return Event("read", "w", begin, end, nbytes, thread)


def ticks(spans: list[tuple[float, float]]) -> set[int]:
    return {tick for begin, end in spans for tick in range(int(begin), int(end))}


@given(SPANS)
def test_merged(spans: list[tuple[float, float]]) -> None:
    result = merged(spans)
    assert ticks(result) == ticks(spans)
    assert all(first[1] < second[0] for first, second in pairwise(result))


@given(SPANS, SPANS)
def test_without(spans: list[tuple[float, float]], holes: list[tuple[float, float]]) -> None:
    result = without(merged(spans), merged(holes))
    assert ticks(result) == ticks(spans) - ticks(holes)
    assert all(begin < end for begin, end in result)
    assert result == sorted(result)


class TestLastPass:
    def test_only_the_latest_pass_is_kept(self) -> None:
        last = LastPass()
        for number in range(3):
            last(read(number, number + 0.5))
            last(Event("pass", "1 rows", number, number + 1, 0, 1))
        assert [event.begin for event in last.events] == [2, 2]

    def test_reads_that_end_after_it_are_its_own_too(self) -> None:
        last = LastPass()
        last(PASS)
        last(read(13, 15))
        assert last.events == [PASS, read(13, 15)]


class TestPicture:
    def test_times_count_from_the_beginning_of_the_pass(self) -> None:
        events = [
            Event("wait", "w", 10, 11, 5, 1),
            Event("compute", "w", 11, 12, 5, 1),
            Event("part", "layer 0", 10, 12, 5, 1),
            Event("part", "head", 12, 14, 5, 1),
            PASS,
        ]
        picture = PassPicture.of(events)
        assert picture.seconds == 4
        assert (picture.waits, picture.computes) == ([(0, 1)], [(1, 2)])
        assert picture.parts == [("layer 0", 0, 2), ("head", 2, 4)]

    def test_reads_are_cut_to_the_pass(self) -> None:
        picture = PassPicture.of([read(8, 9), read(9, 11), read(13, 15, thread=3), read(14.5, 16), PASS])
        assert picture.reads == {2: [(0, 1, 500)], 3: [(3, 4, 500)]}
        assert picture.bytes_read == 1000

    def test_what_was_waited_for_is_not_computing(self) -> None:
        events = [Event("compute", "gate", 10, 13, 5, 1), Event("wait", "up", 11, 12, 5, 1), PASS]
        assert PassPicture.of(events).computes == [(0, 1), (2, 3)]

    @given(st.lists(st.tuples(st.floats(9, 13.9), st.floats(0.01, 2), st.integers(1, 10**9)), max_size=20))
    def test_the_rate_adds_up_to_the_bytes(self, reads: list[tuple[float, float, int]]) -> None:
        events = [read(begin, begin + length, nbytes, i) for i, (begin, length, nbytes) in enumerate(reads)]
        picture = PassPicture.of([*events, PASS])
        assert picture.rate(bins=37).sum() * 4 / 37 == pytest.approx(picture.bytes_read, rel=1e-6, abs=1)

    def test_the_rate_over_time(self) -> None:
        rate = PassPicture.of([read(10, 12, 200), read(11, 12, 300, thread=3), PASS]).rate(bins=4)
        np.testing.assert_allclose(rate, [100, 400, 0, 0])

    def test_its_time(self) -> None:
        picture = PassPicture(4.0, {}, [(0.0, 1.0), (3.0, 3.5)], [(1.0, 3.0)], [])
        assert (picture.wait_seconds, picture.compute_seconds) == (1.5, 2.0)

    def test_no_pass(self) -> None:
        with pytest.raises(ValueError, match="no pass"):
            PassPicture.of([read(0, 1)])


class TestCheck:
    def test_what_a_plot_is(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            check_plot(tmp_path / "pass.txt")
        assert caught.value.problem == f"{tmp_path / 'pass.txt'}: a plot is a .png, .svg, .pdf file."
        assert caught.value.remedy == "Name it pass.png."

    def test_where_it_goes(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=re.escape(f"there is no directory {tmp_path / 'no'}")):
            check_plot(tmp_path / "no" / "pass.png")

    def test_matplotlib_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PenstockError) as caught:
            check_plot(tmp_path / "pass.png")
        assert str(caught.value) == (
            "Plots are drawn by matplotlib, which is missing.\nInstall it: pip install matplotlib"
        )


class TestDraw:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    def picture(self, reads: int = 40, parts: int = 12) -> PassPicture:
        step = 4 / parts
        bands = [Event("part", f"layer {i}", 10 + i * step, 10 + (i + 1) * step, 0, 1) for i in range(parts)]
        work = [Event("compute", "w", 10 + i / 10, 10.05 + i / 10, 0, 1) for i in range(40)]
        waits = [Event("wait", "w", 10.05 + i / 10, 10.1 + i / 10, 0, 1) for i in range(40)]
        return PassPicture.of([*bands, *work, *waits, *(read(10 + i / 10, 10.1 + i / 10) for i in range(reads)), PASS])

    @pytest.mark.parametrize(
        ("name", "magic"),
        quick(1, [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("B.PNG", b"\x89PNG")]),
    )
    def test_a_picture(self, tmp_path: Path, name: str, magic: bytes) -> None:
        draw(self.picture(), tmp_path / name, "A pass", "1 s", 1e9)
        assert (tmp_path / name).read_bytes().startswith(magic)

    def test_a_pass_without_reads(self, tmp_path: Path) -> None:
        draw(self.picture(reads=0, parts=1), tmp_path / "a.svg", "A pass", "1 s", 1e9)
        assert (tmp_path / "a.svg").stat().st_size > 0

    def test_it_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").mkdir()
        with pytest.raises(PenstockError, match=r"a.png: the plot cannot be written: Is a directory"):
            draw(self.picture(), tmp_path / "a.png", "A pass", "1 s", 1e9)
