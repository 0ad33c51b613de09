from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.models.pass_stats import PartStats, PassStats
from penstock.speculate.costs import GUESS_FLOPS, Costs, Line

GIGA = 10**9


def a_pass(rows: int, wait: float, compute: float) -> PassStats:
    """Of two parts, beside which it took long to guess. What waits reads."""
    half = PartStats("layer 0", 50 * (wait > 0), wait / 2, wait / 2, compute / 2)
    seconds = wait + compute
    return PassStats(rows, (half, half), seconds=99 + seconds, stage_seconds=seconds, draft_seconds=99)


class TestLine:
    def test_nothing_was_measured(self) -> None:
        line = Line(2.0)
        assert not line.known
        assert line(5) == 0

    def test_the_slope_is_taken_on_trust_until_rows_differ(self) -> None:
        line = Line(0.5)
        for _ in range(3):
            line.add(4, 10)
        assert line.known
        assert line(4) == pytest.approx(10)
        assert line(7) == pytest.approx(11.5)
        assert line(1) == pytest.approx(8.5)

    def test_within_reason(self) -> None:
        """Rows take at most half of what was measured: a slope that is far too steep does not bend all to 0."""
        line = Line(99.0)
        line.add(4, 10)
        assert line(0) == pytest.approx(5)
        assert line(8) == pytest.approx(15)

    @given(st.floats(0.01, 100), st.floats(0, 10), st.integers(1, 50), st.integers(2, 20))
    def test_it_goes_through_what_lies_on_a_line(self, a: float, b: float, rows: int, factor: int) -> None:
        line = Line(99.0)
        for count in (rows, factor * rows) * 3:
            line.add(count, a + b * count)
        for count in (rows, factor * rows, 3 * factor * rows):
            assert line(count) == pytest.approx(a + b * count, rel=1e-3)

    def test_more_rows_never_take_less(self) -> None:
        line = Line(1.0)
        for rows, seconds in ((1, 5), (10, 4), (100, 3)) * 5:
            line.add(rows, seconds)
        assert line(100) == line(1) > 0

    @given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 1e3)), min_size=1), st.integers(0, 500))
    def test_seconds_are_never_negative(self, history: list[tuple[int, float]], rows: int) -> None:
        line = Line(5.0)
        for count, seconds in history:
            line.add(count, seconds)
        assert line(rows) >= 0

    def test_it_follows_what_changes(self) -> None:
        line = Line(0.0)
        for seconds in (1.0, 3.0):
            for rows in (1, 20) * 40:
                line.add(rows, seconds * rows)
        assert line(10) == pytest.approx(30, rel=0.05)


class TestPasses:
    def test_nothing_was_measured(self) -> None:
        assert Costs(GIGA).pass_seconds(5) == 0

    def test_rows_are_free_while_the_disk_works(self) -> None:
        costs = Costs(GIGA)
        for rows in (1, 30) * 10:
            costs.learn_pass(a_pass(rows, 10 - 0.1 * rows, 0.1 * rows))
        assert costs.disk_seconds == pytest.approx(10)
        assert costs.pass_seconds(1) == pytest.approx(10, rel=0.01)
        assert costs.pass_seconds(60) == pytest.approx(10, rel=0.01)
        assert costs.pass_seconds(300) == pytest.approx(30, rel=0.05)

    def test_where_disk_and_arithmetic_are_equal_a_pass_takes_longer_than_either(self) -> None:
        costs = Costs(GIGA)
        for rows in (1, 30) * 10:
            costs.learn_pass(a_pass(rows, 10 - 0.1 * rows, 0.1 * rows))
        assert 10.5 < costs.pass_seconds(100) < 12

    def test_every_row_costs_where_there_is_nothing_to_wait_for(self) -> None:
        costs = Costs(GIGA)
        for rows in (1, 30) * 10:
            costs.learn_pass(a_pass(rows, 0, 2 + 0.1 * rows))
        assert costs.disk_seconds == 0
        assert costs.pass_seconds(1) == pytest.approx(2.1, rel=0.01)
        assert costs.pass_seconds(60) == pytest.approx(8, rel=0.01)

    def test_the_price_of_a_row_is_guessed_at_first(self) -> None:
        costs = Costs(GIGA)
        costs.learn_pass(a_pass(1, 0, 1))
        assert costs.pass_seconds(11) == pytest.approx(1 + 10 * 2 * GIGA / GUESS_FLOPS)

    def test_a_disk_that_is_no_longer_needed(self) -> None:
        """As where weights became resident: a pass that only computes is no slower than its arithmetic."""
        costs = Costs(GIGA)
        costs.learn_pass(a_pass(1, 9, 1))
        costs.learn_pass(a_pass(1, 0, 1))
        assert costs.disk_seconds <= 1
        assert costs.pass_seconds(1) < 1.2

    def test_a_disk_that_slows_down(self) -> None:
        costs = Costs(GIGA)
        for wait in [4] + [9] * 60:
            costs.learn_pass(a_pass(1, wait, 1))
        assert costs.disk_seconds == pytest.approx(10, rel=0.01)

    @given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 20), st.floats(0, 20)), max_size=30))
    def test_more_rows_never_take_less(self, history: list[tuple[int, float, float]]) -> None:
        costs = Costs(GIGA)
        for rows, wait, compute in history:
            costs.learn_pass(a_pass(rows, wait, compute))
        seconds = [costs.pass_seconds(rows) for rows in (1, 2, 30, 300)]
        assert seconds == sorted(seconds)


class TestColdPasses:
    """Those that bring weights into memory, as the first ones do: they say little of the ones to come."""

    def test_one_counts_until_others_are_known(self) -> None:
        costs = Costs(GIGA)
        assert not costs.known
        costs.learn_cold_pass(a_pass(1, 9, 1), streamed=50)
        assert costs.known
        assert costs.disk_seconds == pytest.approx(5)  # it read 100 bytes
        for _ in range(2):
            costs.learn_pass(a_pass(1, 3, 1))
        assert costs.disk_seconds == pytest.approx(4)
        before = costs.pass_seconds(1)
        costs.learn_cold_pass(a_pass(1, 90, 1), streamed=50)
        assert costs.pass_seconds(1) == before

    def test_nothing_is_known_from_one_after_which_nothing_streams(self) -> None:
        costs = Costs(GIGA)
        costs.learn_cold_pass(a_pass(1, 9, 1), streamed=0)
        assert not costs.known
        assert costs.pass_seconds(1) == 0


class TestDrafts:
    def test_each_drafter_has_its_own_price(self) -> None:
        costs = Costs(GIGA)
        for rows in (1, 16) * 3:
            costs.learn_draft("fast", rows, 0.5)
            costs.learn_draft("slow", rows, 1 + rows)
        assert costs.draft_seconds("fast", 8) == pytest.approx(0.5)
        assert costs.draft_seconds("slow", 8) == pytest.approx(9)
        assert costs.draft_seconds("unknown", 8) == 0

    def test_guesses_are_no_part_of_a_pass(self) -> None:
        costs = Costs(GIGA)
        costs.learn_draft("slow", 1, 100)
        assert costs.pass_seconds(1) == 0
