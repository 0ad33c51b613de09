from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.guessing import paths, root
from penstock.speculate.tree import Claim, Tree


def random_tree(data: st.DataObject, most: int = 30) -> Tree:
    """Each node less likely than its parent, or as likely."""
    tree = root()
    for token in range(data.draw(st.integers(0, most))):
        parent = data.draw(st.integers(0, len(tree) - 1))
        tree.add(parent, token, tree.chances[parent] * data.draw(st.sampled_from([0.1, 0.5, 0.5, 1.0])))
    return tree


def small() -> Tree:
    """1 -> (5 -> (7 -> 8, 6), 4)."""
    tree = root([3, 1])
    five = tree.add(0, 5, 0.5)
    tree.add(0, 4, 0.25)
    seven = tree.add(five, 7, 0.25)
    tree.add(five, 6, 0.125)
    tree.add(seven, 8, 0.0625)
    return tree


class TestNodes:
    def test_a_root(self) -> None:
        tree = root([4, 9, 2])
        assert (tree.tokens, tree.parents, tree.chances) == ([2], [-1], [1.0])
        assert len(tree) == 1
        assert tree.depth(0) == 0
        assert tree.path(0) == tree.lineage(0) == list(tree.children(0)) == []

    def test_where_nodes_are(self) -> None:
        tree = small()
        assert tree.tokens == [1, 5, 4, 7, 6, 8]
        assert tree.parents == [-1, 0, 0, 1, 1, 3]
        assert [tree.depth(node) for node in range(6)] == [0, 1, 1, 2, 2, 3]
        assert [list(tree.children(node)) for node in range(6)] == [[1, 2], [3, 4], [], [5], [], []]
        assert tree.lineage(5) == [1, 3, 5]
        assert tree.path(5) == [5, 7, 8]
        assert (tree.child(0, 4), tree.child(1, 6), tree.child(1, 5), tree.child(5, 1)) == (2, 4, None, None)

    def test_claims(self) -> None:
        claim = Claim("lookup", 0.3)
        tree = root()
        tree.add(0, 5, 0.5, (claim,))
        assert tree.claims == [(), (claim,)]

    @pytest.mark.parametrize(("temperature", "sampled"), [(0.0, False), (0.1, True), (1.0, True)])
    def test_whether_tokens_are_drawn_with_noise(self, temperature: float, sampled: bool) -> None:
        assert root(temperature=temperature).sampled is sampled


class TestRaisedChances:
    def test_what_follows_becomes_likelier_too(self) -> None:
        tree = small()
        tree.set_chance(1, 0.75)
        assert tree.chances == pytest.approx([1, 0.75, 0.25, 0.375, 0.1875, 0.09375])

    @given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 3))
    @example(1, 35, 1)
    def test_no_node_is_likelier_than_its_parent(self, low: int, high: int, depth: int) -> None:
        """By not even a rounding error: a tree that is cut hangs together."""
        tree = root()
        for token in range(depth + 1):
            tree.add(token, token, low / 100)
        tree.set_chance(1, max(low, high) / 100)
        for node in range(1, len(tree)):
            assert tree.chances[node] <= tree.chances[tree.parents[node]]
        for count in range(len(tree)):
            assert len(tree.largest(count)) == count + 1


class TestLargest:
    def test_the_likeliest(self) -> None:
        assert paths(small().largest(2)) == {(5,): 0.5, (4,): 0.25}
        assert paths(small().largest(3)) == {(5,): 0.5, (4,): 0.25, (5, 7): 0.25}
        assert paths(small().largest(0)) == {}

    @given(st.data())
    def test_the_best_nodes_with_all_that_they_hang_on(self, data: st.DataObject) -> None:
        tree = random_tree(data)
        count = data.draw(st.integers(0, 40))
        kept = tree.largest(count)
        assert len(kept) == min(count, len(tree) - 1) + 1
        assert (kept.key, kept.context, kept.deepest) == (tree.key, tree.context, tree.deepest)
        assert kept.parents[0] == -1
        assert all(kept.parents[node] < node for node in range(len(kept)))
        every = paths(tree)
        assert paths(kept).items() <= every.items()
        best = sorted(every.values(), reverse=True)[:count]
        assert sorted(paths(kept).values(), reverse=True) == best

    def test_it_is_another_tree(self) -> None:
        tree = small()
        kept = tree.largest(5)
        kept.add(0, 99, 0.1)
        kept.set_chance(1, 1.0)
        assert len(tree) == 6
        assert tree.chances[1] == 0.5
        assert paths(tree.largest(5)) == paths(tree)
