"""Scores of rows are those of all their logits, whatever pieces these come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.architectures.base import SCORED_AT_ONCE
from penstock.logprobs import token_logprobs
from penstock.models.logits import Likeliest, Logits
from penstock.models.scores import Scores, Scoring, likeliest


def scored(rows: np.ndarray, targets: np.ndarray, top: int, widths: list[int]) -> Scores:
    scoring, first = Scoring(targets, top), 0
    for width in widths:
        for group in scoring.groups():
            scoring.take(first, rows[group, first : first + width], group)
        first += width
    return scoring.scores()


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_they_are_those_that_drawing_tells(n: int, widths: list[int], top: int, seed: int, ties: bool) -> None:
    rng, vocab = np.random.default_rng(seed), sum(widths)
    rows = (3 * rng.normal(size=(n, vocab))).astype(np.float32)
    rows = np.round(rows) if ties else rows
    targets = rng.integers(0, vocab, n)
    found = scored(rows, targets, min(top, vocab), widths)
    np.testing.assert_array_equal(found.best, rows.argmax(axis=1))
    np.testing.assert_array_equal(found.peaks, rows.max(axis=1))
    for row in range(n):
        told = token_logprobs(rows[row], int(targets[row]), min(top, vocab))
        assert told.logprob == found.logprobs[row]
        own = zip(found.top_tokens[row].tolist(), found.top_logprobs[row].tolist(), strict=True)
        assert tuple(own) == told.top


def test_many_rows_come_in_groups() -> None:
    n = 2 * SCORED_AT_ONCE + 3
    rows = np.random.default_rng(4).normal(size=(n, 50)).astype(np.float32)
    assert [group.stop - group.start for group in Scoring(np.zeros(n, np.int64), 0).groups()] == [256, 256, 3]
    found = scored(rows, np.arange(n) % 50, 2, [20, 30])
    expected = [token_logprobs(row, at % 50, 0).logprob for at, row in enumerate(rows)]
    np.testing.assert_array_equal(found.logprobs, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(value: float) -> None:
    rows = np.zeros((2, 90), np.float32)
    rows[1] = value
    found = scored(rows, np.array([3, 4]), 2, [40, 50])
    np.testing.assert_array_equal(np.isfinite(found.peaks), [True, False])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_likeliest_are_in_order_and_equal_ones_by_number(n: int, count: int, seed: int) -> None:
    row = np.random.default_rng(seed).integers(0, 8, n).astype(np.float32)
    np.testing.assert_array_equal(likeliest(row, count), sorted(range(n), key=lambda i: (-row[i], i))[:count])


def test_rows_of_three_kinds_are_found_by_their_place() -> None:
    rows = np.random.default_rng(3).normal(size=(6, 90)).astype(np.float32)
    told, given_scores = np.array([0, 1, 0, 0, 1, 0], bool), np.array([1, 0, 0, 1, 0, 1], bool)
    scores = scored(rows[given_scores], np.array([5, 6, 7]), 0, [90])
    logits = Logits(rows[~told & ~given_scores], Likeliest.of(rows[told]), told, scores, given_scores)
    for at in range(6):
        part = logits.part(at, at + 1)
        if given_scores[at]:
            assert part.scores is not None
            assert part.scores.best.tolist() == [rows[at].argmax()]
            continue
        assert part.scores is None
        found = part.row(0)
        best = found.tokens[0, 0] if isinstance(found, Likeliest) else found[0].argmax()
        assert isinstance(found, Likeliest) == told[at]
        assert best == rows[at].argmax()
