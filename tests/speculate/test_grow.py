from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.guessing import Key, Scripted, paths, root
from helpers.thorough import examples
from penstock.speculate import grow
from penstock.speculate.calibration import DOUBTED, Calibration
from penstock.speculate.drafter import Drafter
from penstock.speculate.grow import BATCH, MOST_NODES, Growth
from penstock.speculate.tree import Claim, Tree

WIDTH, DEPTH = 3, 5


class Prices:
    """What passes and guesses take, as a test says."""

    def __init__(
        self, seconds: Callable[[float], float] = lambda rows: 1e6, draft: Callable[[int], float] = lambda rows: 0.0
    ) -> None:
        self.pass_seconds = seconds
        self._draft = draft

    def draft_seconds(self, drafter: str, rows: int) -> float:
        return self._draft(rows)

    def learn_draft(self, drafter: str, rows: int, seconds: float) -> None:
        pass

    free_seconds = 0.0

    def learn_free(self, nodes: int, seconds: float) -> None:
        pass


def grown(trees: Sequence[Tree], drafters: Sequence[Drafter], costs: Any = None, **options: Any) -> list[Tree]:
    calibrations = options.pop("calibrations", None) or {False: Calibration(), True: Calibration()}
    return Growth(trees, drafters, calibrations, costs or Prices(), **options).run()


def guesses_of(seed: int, path: Sequence[int]) -> list[tuple[int, float]]:
    """WIDTH guesses after a path, of any scores, the same every time."""
    rng = random.Random(f"{seed} {list(path)}")
    scores = sorted((rng.uniform(0.02, 0.5) for _ in range(WIDTH)), reverse=True)
    return [(token, score) for token, score in enumerate(scores)] if len(path) < DEPTH else []


def bush(seed: int, **options: Any) -> Scripted:
    return Scripted(lambda tree, node: guesses_of(seed + tree.context[-1], tree.path(node)), **options)


def best_paths(seed: int, count: int) -> set[tuple[int, ...]]:
    """The `count` best of all paths."""
    every: dict[tuple[int, ...], float] = {}
    front: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while front:
        path, chance = front.pop()
        new = [((*path, token), chance * score) for token, score in guesses_of(seed, path)]
        every.update(new)
        front += new
    return set(sorted(every, key=lambda path: -every[path])[:count])


class TestFixedCount:
    @pytest.mark.parametrize("free", [True, False])
    @pytest.mark.parametrize("batch", [1, 5, 16])
    @settings(max_examples=examples(12))
    @given(seed=st.integers(0, 1000), count=st.integers(1, 60))
    def test_the_best_nodes_there_are(self, batch: int, free: bool, seed: int, count: int) -> None:
        """However many nodes a drafter is asked about at once."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grow, "BATCH", batch)
            [tree] = grown([root([0])], [bush(seed, free=free)], fixed=count)
        assert set(paths(tree)) == best_paths(seed, count)

    def test_all_that_there_are(self) -> None:
        [tree] = grown([root([0])], [bush(1, free=False)], fixed=10_000, most_nodes=4096)
        assert len(tree) - 1 == sum(WIDTH**depth for depth in range(1, DEPTH + 1))

    def test_several_trees_have_as_many_each(self) -> None:
        trees = grown([root([seed]) for seed in (1, 2, 3)], [bush(0, free=False)], fixed=9)
        for seed, tree in zip((1, 2, 3), trees, strict=True):
            assert set(paths(tree)) == best_paths(seed, 9)

    def test_no_more_than_there_is_room_for(self) -> None:
        trees = grown([root([seed]) for seed in (1, 2, 3)], [bush(0)], fixed=9, most_nodes=10)
        assert [len(tree) - 1 for tree in trees] == [3, 3, 3]
        assert [len(tree) for tree in grown([root([1])], [bush(0)], fixed=9, most_nodes=0)] == [1]

    def test_costs_do_not_matter(self) -> None:
        prices = Prices(lambda rows: 1 + 100 * rows, lambda rows: 1e9)
        [tree] = grown([root([0])], [bush(5, free=False)], prices, fixed=20)
        assert set(paths(tree)) == best_paths(5, 20)

    def test_unlikely_guesses_are_better_than_none(self) -> None:
        [tree] = grown([root()], [Scripted(lambda tree, node: [(5, 1e-6)] * (node == 0))], fixed=4)
        assert set(paths(tree)) == {(5,)}

    def test_two_drafters_feed_one_tree(self) -> None:
        """The better one's word counts, in what it does not guess too."""
        one = Scripted(lambda tree, node: [(5, 0.4), (6, 0.3)] if node == 0 else [], "one")
        two = Scripted(lambda tree, node: [(6, 0.5), (7, 0.2)] if node == 0 else [], "two", free=False)
        [tree] = grown([root()], [one, two], fixed=3)
        assert paths(tree) == pytest.approx({(5,): 0.4 * DOUBTED, (6,): 0.5, (7,): 0.2})
        claims = {tree.tokens[child]: tree.claims[child] for child in tree.children(0)}
        assert claims[5] == (Claim("one", 0.4), Claim("one", 0.4, "two"))
        assert claims[6] == (Claim("one", 0.3), Claim("two", 0.5))
        assert claims[7] == (Claim("two", 0.2),)

    def test_the_surer_of_two_free_ones_counts(self) -> None:
        one = Scripted(lambda tree, node: [(5, 0.6), (6, 0.1)] * (node == 0), "one")
        two = Scripted(lambda tree, node: [(5, 0.1), (6, 0.2)] * (node == 0), "two")
        [tree] = grown([root()], [one, two], fixed=3)
        assert paths(tree) == pytest.approx({(5,): 0.6, (6,): 0.2})

    def test_what_follows_a_doubted_guess_is_less_likely_too(self) -> None:
        """A drafter that has no guess at all, as where it rests, doubts nothing."""
        one = Scripted(lambda tree, node: [(5, 0.5)] * (tree.depth(node) < 2), "one")
        two = Scripted(lambda tree, node: [(7, 0.2)] * (node == 0), "two", free=False)
        [tree] = grown([root()], [one, two], fixed=9)
        assert paths(tree)[(5, 5)] == pytest.approx(0.25 * DOUBTED)

    def test_doubts_are_checked_as_all_else_is(self) -> None:
        """Where what is doubted is right all the same, doubts come to mean nothing."""
        calibration = Calibration()
        for _ in range(500):
            tree = root()
            tree.add(0, 5, 0.5, (Claim("one", 0.5), Claim("one", 0.5, "two")))
            calibration.learn(tree, [5])
        one = Scripted(lambda tree, node: [(5, 0.5)] * (node == 0), "one")
        two = Scripted(lambda tree, node: [(7, 0.2)] * (node == 0), "two", free=False)
        [tree] = grown([root()], [one, two], fixed=3, calibrations={False: calibration, True: calibration})
        assert paths(tree)[(5,)] > 0.95

    def test_free_drafters_go_on_from_the_nodes_of_others(self) -> None:
        paid = Scripted(lambda tree, node: [(5, 0.9)] * (node == 0), "paid", free=False)
        free = Scripted(lambda tree, node: [(6, 0.9)] * (tree.path(node) == [5]), "free")
        [tree] = grown([root()], [paid, free], fixed=3)
        assert set(paths(tree)) == {(5,), (5, 6)}

    def test_a_drafter_is_asked_about_a_node_once(self) -> None:
        for free in (True, False):
            drafter = bush(3, free=free)
            grown([root([1]), root([2])], [drafter], fixed=30)
            asked = [(id(tree), node) for tree, node in drafter.asked]
            assert len(asked) == len(set(asked))

    def test_nodes_that_cannot_matter_are_not_asked_about(self) -> None:
        """The second guess is too unlikely for its children to be among the best two."""
        drafter = Scripted(lambda tree, node: [(0, 0.9), (1, 0.05)], free=False)
        [tree] = grown([root()], [drafter], fixed=2)
        assert set(paths(tree)) == {(0,), (0, 0)}
        assert not any(1 in tree.path(node) for tree, node in drafter.asked)


class TestDeepest:
    @pytest.mark.parametrize("free", [True, False])
    @pytest.mark.parametrize("fixed", [None, 40])
    @pytest.mark.parametrize("deepest", [0, 1, 3])
    def test_no_guess_lies_deeper(self, free: bool, fixed: int | None, deepest: int) -> None:
        drafter = bush(2, free=free)
        [tree] = grown([root([0], deepest)], [drafter], fixed=fixed)
        assert max(tree.depth(node) for node in range(len(tree))) == deepest
        if not free:  # a drafter that takes time is not asked in vain
            assert all(tree.depth(node) < deepest for tree, node in drafter.asked)

    def test_each_tree_has_its_own(self) -> None:
        trees = grown([root([0], deepest) for deepest in (0, 2, 1)], [bush(2, free=False)], fixed=40)
        assert [max(tree.depth(node) for node in range(len(tree))) for tree in trees] == [0, 2, 1]


def taught(right: bool, drafter: str = "scripted", times: int = 2000) -> dict[bool, Calibration]:
    """All guesses so far, of several scores, were right, or none was."""
    calibration = Calibration()
    for i in range(times):
        tree = root()
        tree.add(0, 5, 0.5, (Claim(drafter, (0.02, 0.1, 0.3, 0.5, 0.9)[i % 5]),))
        calibration.learn(tree, [5 if right else 6])
    return {False: calibration, True: calibration}


SCORES = [1e-300, 1e-6, 0.01, 0.2, 0.35, 0.5, 0.99, 1.0]


@settings(max_examples=examples(60))
@given(seed=st.integers(0, 10**6), fixed=st.sampled_from([None, 1, 3, 20]), count=st.integers(1, 3))
def test_trees_are_sound_whatever_drafters_say(seed: int, fixed: int | None, count: int) -> None:
    """Free ones and others, which agree and contradict each other, with any experience; over several passes."""
    rng = random.Random(seed)
    names = [("free", True), ("freer", True), ("paid", False), ("dearer", False)]

    def say(tree: Tree, node: int) -> list[tuple[int, float]]:
        tokens = rng.sample(range(5), rng.randrange(4)) if tree.depth(node) < 6 else []
        return sorted(((token, rng.choice(SCORES)) for token in tokens), key=lambda guess: -guess[1])

    drafters = [Scripted(say, name, free) for name, free in rng.sample(names, rng.randint(1, 4))]
    calibrations = {False: Calibration(), True: Calibration()}
    prices = Prices(lambda rows: 10 + 0.1 * rows, lambda rows: 0.01 * rows)
    for _ in range(4):
        roots = [root([i], deepest=rng.randrange(9), temperature=float(rng.random() < 0.5)) for i in range(count)]
        trees = grown(
            roots, drafters, prices, fixed=fixed, most_nodes=rng.choice([0, 7, 100]), calibrations=calibrations
        )
        assert [tree.context for tree in trees] == [tree.context for tree in roots]
        for tree, start in zip(trees, roots, strict=True):
            assert paths(tree).items() <= paths(start).items()
            assert len(tree) - 1 <= (fixed or 100)
            assert tree.chances[0] == 1
            for node in range(1, len(tree)):
                assert 0 <= tree.chances[node] <= tree.chances[tree.parents[node]]
                assert tree.depth(node) <= tree.deepest
                assert tree.claims[node]
            for whole in (tree, start):
                for size in range(len(whole)):
                    assert len(whole.largest(size)) == size + 1
            calibrations[tree.sampled].learn(start, [rng.randrange(5) for _ in range(4)])


class TestExploring:
    def test_a_drafter_that_does_not_seem_to_pay_is_asked_about_the_roots(self) -> None:
        """Once, so that it can show that texts have changed."""
        prices = Prices(lambda rows: 10.0, lambda rows: 1e9)
        for explore in (False, True):
            drafter = bush(1, free=False)
            growth = Growth(
                [root([1]), root([2])],
                [drafter],
                taught(False),
                prices,  # type: ignore[arg-type]
                explore=explore,
            )
            growth.run()
            assert growth.asked is explore
            assert [len(batch) for batch in drafter.batches] == [2] * explore
            assert all(node == 0 for _, node in drafter.asked)


class TestOwnChoice:
    def test_everything_likely_where_it_is_free(self) -> None:
        drafter = Scripted(lambda tree, node: [(0, 0.5), (1, 0.01), (2, 0.0005)], free=False)
        [tree] = grown([root()], [drafter])
        expected = {path for path in every_path(12) if chance_of(path) >= grow.LEAST_CHANCE}
        assert set(paths(tree)) == expected
        assert len(expected) > 15

    def test_never_more_than_most_nodes(self) -> None:
        [tree] = grown([root()], [Scripted(lambda tree, node: [(0, 0.99)])], most_nodes=17)
        assert len(tree) - 1 == 17
        trees = grown([root([i]) for i in range(3)], [Scripted(lambda tree, node: [(t, 0.3) for t in (0, 1, 2)])])
        assert sum(len(tree) - 1 for tree in trees) == MOST_NODES

    @pytest.mark.parametrize(("price", "asked"), [(7.0, True), (9.0, False), (1e9, False)])
    def test_a_draft_that_costs_more_than_it_brings(self, price: float, asked: bool) -> None:
        """A pass of 10 s brings one token, and the draft's guesses 0.8 more before it was ever checked."""
        drafter = Scripted(lambda tree, node: [(5, 0.5)], free=False)
        grown([root(deepest=1)], [drafter], Prices(lambda rows: 10.0, lambda rows: price))
        assert bool(drafter.batches) is asked

    def test_it_goes_on_while_guesses_outweigh_their_price(self) -> None:
        """Chains of half the chance each time."""
        depths = []
        for price in (3.0, 1.0, 0.2, 0.02):
            drafter = Scripted(lambda tree, node: [(5, 0.5)], free=False)
            [tree] = grown([root()], [drafter], Prices(lambda rows: 10.0, lambda rows, price=price: price))  # type: ignore[misc]
            depths.append(len(tree) - 1)
        assert depths == sorted(depths)
        assert 1 <= depths[0] < depths[-1]

    def test_a_row_that_costs_more_than_it_brings(self) -> None:
        """Of guesses with chances 0.5, 0.25, ..., those that are above a row's share of the pass."""
        drafter = Scripted(lambda tree, node: [(5, 0.5)])
        sizes = [len(grown([root()], [drafter], Prices(lambda rows, b=b: 10 + b * rows))[0]) - 1 for b in (20, 2, 0.02)]  # type: ignore[misc]
        assert sizes == [0, 2, 7]

    def test_rows_beside_the_trees_count(self) -> None:
        """In a pass that computes for long anyway, a row more hardly matters."""
        prices = Prices(lambda rows: 10 + 20 * rows)
        [tree] = grown([root()], [Scripted(lambda tree, node: [(5, 0.5)])], prices, other_rows=1000)
        assert len(tree) > 1

    @pytest.mark.parametrize("free", [True, False])
    def test_nothing_where_nothing_was_ever_right(self, free: bool) -> None:
        drafter = bush(4, free=free)
        prices = Prices(lambda rows: 10 + 0.01 * rows, lambda rows: 0.1)
        [tree] = grown([root([0])], [drafter], prices, calibrations=taught(False))
        assert len(tree) == 1
        if not free:
            assert not drafter.batches

    def test_all_where_everything_was_right(self) -> None:
        prices = Prices(lambda rows: 10 + 0.01 * rows, lambda rows: 0.01)
        drafter = Scripted(lambda tree, node: [(5, 0.1)], free=False)
        [tree] = grown([root(deepest=6)], [drafter], prices, calibrations=taught(True))
        assert len(tree) - 1 == 6

    def test_a_drafter_of_unknown_price_is_tried(self) -> None:
        drafter = bush(4, free=False)
        grown([root([0])], [drafter], Prices(lambda rows: 0.0))
        assert drafter.batches
        assert max(map(len, drafter.batches)) <= BATCH

    def test_the_likelier_tree_gets_more_nodes(self) -> None:
        likely = {1: 0.9, 2: 0.3}
        drafter = Scripted(lambda tree, node: [(5, likely[tree.context[0]])])
        prices = Prices(lambda rows: 10 + 0.5 * rows)
        trees = grown([root([1, 7]), root([2, 7])], [drafter], prices)
        assert len(trees[0]) > len(trees[1]) > 1
        chances = [chance for tree in trees for chance in tree.chances[1:]]
        left_out = [chance * 0.9 for chance in (trees[0].chances[-1],)] + [trees[1].chances[-1] * 0.3]
        assert min(chances) >= max(left_out)

    def test_no_drafters(self) -> None:
        assert [len(tree) for tree in grown([root(), root()], [])] == [1, 1]

    def test_greedy_and_sampled_text_are_told_apart(self) -> None:
        calibrations = {False: taught(True)[False], True: taught(False)[True]}
        drafter = Scripted(lambda tree, node: [(5, 0.5)])
        prices = Prices(lambda rows: 10 + 0.1 * rows)
        trees = [root(key=Key(), deepest=4), root(key=Key(), deepest=4, temperature=1.0)]
        greedy, sampled = grown(trees, [drafter], prices, calibrations=calibrations)
        assert len(greedy) - 1 == 4
        assert len(sampled) == 1


def every_path(depth: int) -> list[tuple[int, ...]]:
    """All paths of tokens 0 to 2 that are likely enough to be looked at."""
    found: list[tuple[int, ...]] = [()]
    for path in found:
        if len(path) < depth:
            found += [(*path, token) for token in (0, 1, 2) if chance_of((*path, token)) > grow.LEAST_CHANCE / 2]
    return found[1:]


def chance_of(path: tuple[int, ...]) -> float:
    chance = 1.0
    for token in path:
        chance *= (0.5, 0.01, 0.0005)[token]
    return chance
