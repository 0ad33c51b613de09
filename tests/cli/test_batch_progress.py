from __future__ import annotations

import pytest

from penstock.batch.progress import Left, Progress, Unfinished
from penstock.batch.state import Counts, Result
from penstock.cli.batch_display import items, time_in_words


def progress(total: int = 10) -> Progress:
    return Progress(Counts(total, done=0, failed=0, tokens=0))


def after(progress: Progress, seconds: int, tokens: list[int], *results: Result) -> None:
    """So many passes of a second each, which bring each of the requests a token, of 100 at most; then the results."""
    for second in range(seconds + 1):
        unfinished = [Unfinished(count + second, 100) for count in tokens]
        progress.count_pass(1.0)
        progress.count(results if second == seconds else [], unfinished, len(tokens) * (second > 0), second)


def test_counts() -> None:
    one = Progress(Counts(total=10, done=3, failed=1, tokens=50))
    one.count_pass(2.0)
    one.count([Result(1, b"", True, 0), Result(2, b"", False, 7)], [Unfinished(4, 9)], 6, 0.0)
    assert (one.total, one.done, one.failed, one.passes, one.drawn, one.tokens) == (10, 5, 2, 1, 6, 61)
    assert one.pass_seconds == 2.0


class TestTimeLeft:
    def test_nothing_to_go_by(self) -> None:
        one = progress()
        assert one.left() is None
        assert one.tokens_per_second is None

    def test_until_one_has_ended_it_is_a_bound(self) -> None:
        one = progress(4)
        after(one, 10, [0, 0])
        assert one.tokens_per_second == 2.0
        assert one.left() == Left((2 * 90 + 2 * 100) / 2, at_most=True)

    def test_then_requests_take_what_others_took(self) -> None:
        one = progress(5)
        after(one, 10, [0, 0], Result(1, b"", False, 40))
        assert one.left() == Left((2 * 30 + 2 * 40) / 2, at_most=False)

    def test_the_longest_one_has_only_its_share(self) -> None:
        one = progress(3)
        after(one, 10, [30, 0], Result(1, b"", False, 20))
        # Of 40 tokens, 50 are expected; the other one draws 10 more.
        assert one.left() == Left((2 * 10) / 2, at_most=False)

    def test_never_beyond_its_limit(self) -> None:
        one = progress(2)
        after(one, 10, [85], Result(1, b"", False, 20))
        assert one.left() == Left(5.0, at_most=False)

    def test_failures_tell_nothing(self) -> None:
        one = progress(3)
        after(one, 10, [0], Result(1, b"", True, 0))
        assert one.left() == Left((90 + 100) / 1, at_most=True)


class TestWords:
    def test_all_of_them(self) -> None:
        one = progress(12)
        after(one, 10, [0, 0], Result(1, b"", False, 40), Result(2, b"", True, 0))
        assert [forms[0] for forms in items(one, 3, 32)] == [
            "2 of 12 done",
            "pass 12, layer 3/32",
            "about 3 min 10 s left",
            "2 tokens/s",
            "1 failed",
            "60 tokens",
            "1 s a pass",
            "2 running",
        ]

    def test_at_the_beginning(self) -> None:
        assert [forms[0] for forms in items(progress(1200), 0, 32)] == [
            "0 of 1,200 done",
            "pass 1, layer 0/32",
            "0 tokens",
            "0 running",
        ]

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0.2, "1 s"),
            (119, "119 s"),
            (500, "8 min 20 s"),
            (5400, "1.5 h"),
            (170_000, "47.2 h"),
            (432_000, "5.0 days"),
        ],
    )
    def test_of_time(self, seconds: float, words: str) -> None:
        assert time_in_words(seconds) == words
