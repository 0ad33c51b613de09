from __future__ import annotations

from collections.abc import Sequence

import pytest

from helpers.guessing import root
from penstock.models.pass_stats import PartStats, PassStats
from penstock.speculate.tree import Claim, Tree
from penstock.speculate.worth import PASSES, Worth

GIGA = 10**9


def a_pass(seconds: float, draft: float, nbytes: int) -> PassStats:
    part = PartStats("layer 0", nbytes, seconds, seconds, 0.0)
    return PassStats(5, (part,), seconds + draft, seconds, draft_seconds=draft)


def tree_of(*claims: Sequence[Claim]) -> Tree:
    """A chain of tokens 0, 1, ...; who guessed each."""
    tree, node = root(), 0
    for token, some in enumerate(claims):
        node = tree.add(node, token, 0.5, tuple(some))
    return tree


def draft() -> Claim:
    return Claim("draft", 0.5)


LOOKUP = Claim("lookup", 0.5)


class TestVerdict:
    def judge(self, *, brought: int, seconds: float, took: float, nbytes: int = GIGA, passes: int = PASSES) -> bool:
        """Of a draft whose guesses brought so many tokens a pass, each of `seconds` and `took` for guessing, that read
        10 GB."""
        worth = Worth("draft", nbytes)
        for _ in range(passes):
            worth.learn(tree_of(*[[draft()]] * brought), range(brought + 1), brought)
            worth.learn_pass(a_pass(seconds, took, 10 * GIGA), disk_bound=True)
        return worth.pays()

    def test_it_brings_more_than_it_costs(self) -> None:
        assert self.judge(brought=1, seconds=10, took=1)

    def test_it_brings_nothing(self) -> None:
        assert not self.judge(brought=0, seconds=10, took=0)

    @pytest.mark.parametrize(("took", "pays"), [(7.9, True), (8.2, False)])
    def test_time(self, took: float, pays: bool) -> None:
        """Two tokens in 10 s and what guessing takes, against one in 9 s, with a tenth less to read."""
        assert self.judge(brought=1, seconds=10, took=took) is pays

    @pytest.mark.parametrize(("nbytes", "pays"), [(4 * GIGA, True), (6 * GIGA, False)])
    def test_memory(self, nbytes: int, pays: bool) -> None:
        """With as much memory as half of what is read, the weights alone would be twice as fast."""
        assert self.judge(brought=1, seconds=10, took=0, nbytes=nbytes) is pays

    def test_it_is_due_after_some_passes(self) -> None:
        assert self.judge(brought=0, seconds=10, took=5, passes=PASSES - 1)
        assert not self.judge(brought=0, seconds=10, took=5, passes=PASSES)

    def test_nothing_is_known(self) -> None:
        assert Worth("draft", GIGA).pays()

    def test_old_passes_count_for_less(self) -> None:
        worth = Worth("draft", GIGA)
        verdicts = []
        for brought in [3] * 5 + [0] * 20:
            for _ in range(PASSES):
                worth.learn(tree_of(*[[draft()]] * brought), range(brought + 1), brought)
                worth.learn_pass(a_pass(10, 2, 10 * GIGA), disk_bound=True)
            verdicts.append(worth.pays())
        assert all(verdicts[:5])
        assert not verdicts[-1]

    def test_memory_does_not_matter_where_the_disk_does_not(self) -> None:
        worth = Worth("draft", 9 * GIGA)
        for _ in range(PASSES):
            worth.learn(tree_of([draft()]), range(2), 1)
            worth.learn_pass(a_pass(10, 1, 10 * GIGA), disk_bound=False)
        assert worth.pays()


class TestWhatOthersBring:
    """Tokens that would have come without the draft are not to its credit."""

    def without(self, tree: Tree, drawn: Sequence[int]) -> float:
        worth = Worth("draft", GIGA)
        worth.learn(tree, drawn, 0)
        return worth._tokens_without

    def test_one_a_pass_in_any_case(self) -> None:
        assert self.without(root(), [5]) == 1

    def test_guesses_that_it_made_alone(self) -> None:
        assert self.without(tree_of([draft()], [draft()]), [0, 1, 2]) == 1

    def test_guesses_that_others_made_too(self) -> None:
        assert self.without(tree_of([LOOKUP, draft()], [LOOKUP], [draft()]), [0, 1, 2]) == 3

    def test_what_follows_its_own(self) -> None:
        assert self.without(tree_of([draft()], [LOOKUP]), [0, 1, 2]) == 1

    def test_wrong_ones(self) -> None:
        assert self.without(tree_of([LOOKUP], [LOOKUP]), [0, 7]) == 2

    def test_what_others_guessed_against_it(self) -> None:
        """A claim that it doubts is another's all the same."""
        claims = [LOOKUP, LOOKUP._replace(doubter="draft")]
        assert self.without(tree_of(claims), [0]) == 2
