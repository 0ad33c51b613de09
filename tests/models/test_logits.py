"""What is told of rows whose logits are not wanted whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.models.logits import GROUP, LIKELIEST, Likeliest, Logits, Ranking, largest

F32 = npt.NDArray[np.float32]


def random_rows(n: int, m: int, seed: int, ties: bool) -> F32:
    rows = np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32)
    return np.round(rows) if ties else rows


@given(st.integers(1, 3), st.integers(1, 12 * GROUP), st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_largest_are_the_largest_in_order(n: int, m: int, count: int, seed: int, ties: bool) -> None:
    rows = random_rows(n, m, seed, ties)
    found = largest(rows, count)
    assert found.shape == (n, min(count, m))
    assert all(len(set(row)) == len(row) for row in found.tolist())
    np.testing.assert_array_equal(np.take_along_axis(rows, found, axis=1), -np.sort(-rows, axis=1)[:, :count])


class TestLikeliest:
    @given(st.integers(1, 3), st.integers(1, 12 * GROUP), st.integers(0, 2**32 - 1), st.booleans())
    def test_of_rows(self, n: int, m: int, seed: int, ties: bool) -> None:
        rows = random_rows(n, m, seed, ties)
        found = Likeliest.of(rows)
        assert found.tokens.shape == found.shares.shape == (n, min(LIKELIEST, m))
        assert all(len(set(row)) == len(row) for row in found.tokens.tolist())
        np.testing.assert_array_equal(found.tokens[:, 0], rows.argmax(axis=1))
        own = np.take_along_axis(rows, found.tokens, axis=1)
        np.testing.assert_array_equal(own, -np.sort(-rows, axis=1)[:, :LIKELIEST])
        exact = np.exp(rows.astype(np.float64))
        np.testing.assert_allclose(found.shares, np.exp(own) / exact.sum(axis=1, keepdims=True), rtol=1e-4)
        np.testing.assert_array_equal(found.peaks, rows.max(axis=1))

    @given(
        st.integers(1, 4),
        st.lists(st.integers(1, 700), min_size=1, max_size=6),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    def test_the_first_is_the_greedy_choice_however_the_rows_come(
        self, n: int, widths: list[int], seed: int, ties: bool
    ) -> None:
        """Equal logits in one part or in several: the lowest token is first, as with all of them."""
        rows = random_rows(n, sum(widths), seed, ties)
        ranking, first = Ranking(n), 0
        for width in widths:
            ranking.take(first, rows[:, first : first + width])
            first += width
        found, whole = ranking.likeliest(), Likeliest.of(rows)
        np.testing.assert_array_equal(found.tokens[:, 0], rows.argmax(axis=1))
        np.testing.assert_array_equal(found.peaks, whole.peaks)
        np.testing.assert_allclose(found.shares, whole.shares, rtol=1e-4)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(("value", "column"), [(np.nan, 0), (np.nan, 999), (np.inf, 3), (-np.inf, slice(None))])
    def test_what_is_not_finite_is_told(self, value: float, column: int | slice) -> None:
        """Wherever it is, as the greatest logit tells."""
        rows = random_rows(2, 1000, 1, ties=False)
        rows[1, column] = value
        ranking = Ranking(2)
        for begin in range(0, 1000, 250):
            ranking.take(begin, rows[:, begin : begin + 250])
        for found in (ranking.likeliest(), Likeliest.of(rows)):
            np.testing.assert_array_equal(np.isfinite(found.peaks), [True, False])

    def test_some_rows_of_them(self) -> None:
        found = Likeliest.of(random_rows(5, 300, 2, ties=False))
        assert len(found) == 5
        assert len(found[1:3]) == 2
        np.testing.assert_array_equal(found[1:3].tokens, found.tokens[1:3])


class TestLogits:
    def test_rows_of_each_kind_are_found_by_their_place_among_all(self) -> None:
        rows = random_rows(6, 90, 3, ties=False)
        told = np.array([False, True, True, False, True, False])
        logits = Logits(rows[~told], Likeliest.of(rows[told]), told)
        for begin, end in ((0, 6), (1, 3), (3, 5), (2, 2), (5, 6)):
            part = logits.part(begin, end)
            assert len(part) == end - begin
            np.testing.assert_array_equal(part.ranked().tokens, Likeliest.of(rows[begin:end]).tokens)
            for index in range(end - begin):
                found, expected = part.row(index), rows[begin + index : begin + index + 1]
                assert isinstance(found, Likeliest) == told[begin + index]
                if isinstance(found, Likeliest):
                    np.testing.assert_array_equal(found.tokens, Likeliest.of(expected).tokens)
                else:
                    np.testing.assert_array_equal(found, expected)

    def test_none_at_all(self) -> None:
        none = Logits.none(70).part(0, 0)
        assert (len(none), none.whole.shape) == (0, (0, 70))
