from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.speculate import lookup
from penstock.speculate.lookup import Chain, Lookup, Text
from penstock.speculate.tree import Tree

TOKENS = st.lists(st.integers(0, 3), max_size=40)


class Key:
    """Stands for a sequence."""


def tree(context: list[int], key: object, path: Sequence[int] = ()) -> Tree:
    """A single path of guesses after `context`."""
    nothing: Any = SimpleNamespace()
    result = Tree(key, context, nothing, nothing, deepest=99)
    node = 0
    for token in path:
        node = result.add(node, token, 0.5)
    return result


def tokens(context: Sequence[int], path: Sequence[int] = ()) -> list[int]:
    """The tokens that a new text guesses, best first."""
    text = Text()
    text.extend(context)
    return [guess.token for guess in text.guesses(path)]


def literal_followers(text: Sequence[int], order: int) -> list[int]:
    """What followed the last n-gram of a text, the latest first."""
    gram = text[len(text) - order :]
    ends = [end for end in range(order, len(text)) if text[end - order : end] == gram]
    return [text[end] for end in reversed(ends)]


@given(TOKENS, TOKENS, TOKENS, st.sampled_from(list(lookup.ORDERS)))
def test_followers_are_those_of_context_and_path(
    first: list[int], more: list[int], path: list[int], order: int
) -> None:
    text = array("i", first)
    chain = Chain(order, text)
    chain.extend()
    text.extend(more)
    chain.extend()
    tail = text[-max(lookup.ORDERS) :]
    tail.extend(path)
    whole = first + more + path
    expected = literal_followers(whole, order) if len(whole) >= order else []
    assert chain.followers(tail, len(path)) == expected[: lookup.OCCURRENCES]


@given(TOKENS, TOKENS)
def test_guesses_are_few_and_honest(context: list[int], path: list[int]) -> None:
    text = Text()
    text.extend(context)
    guesses = text.guesses(path)
    assert len(guesses) <= lookup.MOST_GUESSES
    assert {guess.token for guess in guesses} <= {*context, *path}
    assert len({guess.token for guess in guesses}) == len(guesses)
    scores = [guess.score for guess in guesses]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)
    assert sum(scores) < 1


def test_a_long_match_beats_frequent_short_ones() -> None:
    context = [1, 2, 3, 4, 50, 4, 60, 4, 60, 4, 60, 9, 1, 2, 3, 4]
    assert tokens(context) == [50, 60]


def test_the_latest_of_equal_matches_comes_first() -> None:
    assert tokens([7, 10, 7, 11, 7]) == [11, 10]


def test_the_path_is_text() -> None:
    assert tokens([1, 2, 3, 4, 1], [2]) == [3]
    assert tokens([5, 6], [1, 2, 3, 1, 2]) == [3]
    assert tokens([5, 6], [7, 6]) == [7]


def test_nothing_is_guessed_without_a_match() -> None:
    assert tokens([1, 2, 3]) == []
    assert tokens([1, 2, 1], [4]) == []


def test_short_matches_are_not_sure() -> None:
    text = Text()
    text.extend([*range(20), 100, 4, 101, *range(20)])
    short, long = Text(), Text()
    short.extend([4, 5, 100, 4])
    long.extend([*range(20), 100, *range(20)])
    assert short.guesses([])[0].score < 0.5
    assert long.guesses([])[0].score > 0.9


def test_a_drafter_expands_chains_by_its_own_guesses() -> None:
    key = Key()
    drafter = Lookup()
    grown = tree([10, 11, 12, 13, 14, 15, 10], key)
    drafter.begin([grown])
    node = 0
    for _ in range(5):
        ((guess, *_),) = drafter.expand([(grown, node)])
        node = grown.add(node, guess.token, guess.score)
    assert grown.path(node) == [11, 12, 13, 14, 15]


def test_a_sequence_goes_on_where_it_was() -> None:
    key = Key()
    drafter = Lookup()
    drafter.begin([tree([1, 2, 3], key)])
    longer = tree([1, 2, 3, 9, 2], key)
    drafter.begin([longer])
    drafter.learn(longer, [0], np.zeros((1, 10), np.float32))
    assert [[guess.token for guess in guesses] for guesses in drafter.expand([(longer, 0)])] == [[3]]


def test_sequences_do_not_see_each_other_and_are_forgotten() -> None:
    keys = [Key(), Key()]
    drafter = Lookup()
    trees = [tree([1, 2, 1], keys[0]), tree([1, 3, 1], keys[1])]
    drafter.begin(trees)
    assert [[guess.token for guess in guesses] for guesses in drafter.expand([(t, 0) for t in trees])] == [[2], [3]]
    for key in keys:
        drafter.forget(key)
    drafter.forget(Key())
    assert not drafter._texts


@pytest.mark.parametrize("length", [300, 5000])
def test_many_tokens_take_few_bytes(length: int) -> None:
    text = Text()
    text.extend(np.random.default_rng(0).integers(0, 4096, length).tolist())
    parts = [text._tokens, *(part for chain in text._chains for part in (chain._latest, chain._before))]
    assert sum(4 * len(part) for part in parts) <= 76 * length + 100
