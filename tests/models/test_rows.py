from __future__ import annotations

import numpy as np
import pytest

from penstock.models.kv_cache import BLOCK_SLOTS, Blocks, KvCache
from penstock.models.rows import Rows, SequenceRows


def cache_of(length: int) -> KvCache:
    cache = KvCache(Blocks())
    cache.reserve(length)
    cache.truncate(length)
    return cache


def tail(rows: SequenceRows, row: int) -> list[int]:
    return rows.tail_slots[rows.tail_offsets[row] : rows.tail_offsets[row + 1]].tolist()


def test_plain_rows_follow_what_is_committed() -> None:
    rows = SequenceRows.plain(cache_of(5), [7, 8, 9])
    assert len(rows) == 3
    assert rows.tokens.tolist() == [7, 8, 9]
    assert rows.positions.tolist() == rows.slots.tolist() == [5, 6, 7]
    assert rows.prefix.tolist() == [6, 7, 8]
    assert [tail(rows, row) for row in range(3)] == [[], [], []]
    assert rows.wanted.tolist() == [2]


@pytest.mark.parametrize(
    ("wanted", "indices"), [((), []), ((-1,), [3]), (range(4), [0, 1, 2, 3]), ((0, -1), [0, 3]), ((1, 2), [1, 2])]
)
def test_wanted_rows(wanted: tuple[int, ...], indices: list[int]) -> None:
    assert SequenceRows.plain(cache_of(0), [1, 2, 3, 4], wanted).wanted.tolist() == indices


def test_a_tree() -> None:
    """
    3 committed;  root 0 with children 1 and 3;  2 below 1;  a second root 4
    """
    rows = SequenceRows.tree(cache_of(3), [10, 11, 12, 13, 14], [-1, 0, 1, 0, -1])
    assert rows.tokens.tolist() == [10, 11, 12, 13, 14]
    assert rows.slots.tolist() == [3, 4, 5, 6, 7]
    assert rows.positions.tolist() == [3, 4, 5, 4, 3]
    assert rows.prefix.tolist() == [3] * 5
    assert [tail(rows, row) for row in range(5)] == [[3], [3, 4], [3, 4, 5], [3, 6], [7]]
    assert rows.wanted.tolist() == [0, 1, 2, 3, 4]


def test_types_are_those_of_the_kernels() -> None:
    for rows in (SequenceRows.plain(cache_of(2), [1, 2]), SequenceRows.tree(cache_of(2), [1, 2], [-1, 0])):
        assert rows.tokens.dtype == rows.positions.dtype == np.int64
        for array in (rows.slots, rows.prefix, rows.tail_offsets, rows.tail_slots):
            assert array.dtype == np.int32


def test_the_rows_of_several_sequences() -> None:
    first = SequenceRows.plain(cache_of(5), [7, 8, 9])
    second = SequenceRows.tree(cache_of(1), [1, 2], [-1, 0])
    third = SequenceRows.plain(cache_of(0), [3], wanted=())
    rows = Rows([first, second, third])
    assert len(rows) == 6
    assert rows.tokens.tolist() == [7, 8, 9, 1, 2, 3]
    assert rows.positions.tolist() == [5, 6, 7, 1, 2, 0]
    assert rows.spans == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert rows.wanted.tolist() == [2, 3, 4]
    assert rows.sequences == (first, second, third)


def test_making_rows_makes_room_for_every_row() -> None:
    caches = [cache_of(BLOCK_SLOTS - 1), cache_of(0), cache_of(BLOCK_SLOTS)]
    rows = Rows([SequenceRows.plain(cache, [1, 2]) for cache in caches])
    assert [cache.n_blocks for cache in caches] == [2, 1, 2]
    assert [cache.length for cache in caches] == [BLOCK_SLOTS - 1, 0, BLOCK_SLOTS]
    assert [part.blocks for part in rows.sequences] == [tuple(cache.block_names) for cache in caches]


def test_making_a_tree_makes_room_for_every_node() -> None:
    cache = cache_of(BLOCK_SLOTS - 2)
    rows = SequenceRows.tree(cache, [1, 2, 3], [-1, 0, 0])
    assert (cache.n_blocks, cache.length) == (2, BLOCK_SLOTS - 2)
    assert rows.blocks == tuple(cache.block_names)
