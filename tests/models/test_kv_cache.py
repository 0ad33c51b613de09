"""Names of blocks: which a cache has, which it shares, and what stages are told to do with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.models.kv_cache import (
    BLOCK_SLOTS,
    Blocks,
    CacheOp,
    CopyBlock,
    FreeBlocks,
    KvCache,
    KvCount,
    MoveSlot,
    Outbox,
    blocks_for,
)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def filled(blocks: Blocks, slots: int) -> KvCache:
    """A cache with so many committed slots."""
    cache = KvCache(blocks)
    cache.reserve(slots)
    cache.truncate(slots)
    return cache


def told(outbox: Outbox) -> tuple[CacheOp, ...]:
    """What a stage does that is told all there is to do."""
    ops = outbox.pending()
    numbers = [number for number, _ in ops]
    assert numbers == sorted(set(numbers))
    outbox.done(ops)
    return tuple(op for _, op in ops)


def test_how_many_blocks_hold_so_many_slots() -> None:
    assert [blocks_for(n) for n in (0, 1, BLOCK_SLOTS, BLOCK_SLOTS + 1)] == [0, 1, 1, 2]


def test_counts_add_up() -> None:
    assert KvCount(2, 1) + KvCount(3) == KvCount(5, 1)
    assert KvCount(2, 1).times(3) == KvCount(6, 3)
    assert KvCount(2, 1).times(0) == KvCount()


def test_growing_moves_nothing(blocks: Blocks) -> None:
    outbox, cache = blocks.outbox(), KvCache(blocks)
    assert cache.n_blocks == 0
    cache.reserve(10)
    [first] = cache.block_names
    cache.reserve(5 * BLOCK_SLOTS + 1)
    assert cache.n_blocks == 6
    assert cache.block_names[0] == first
    assert len(set(cache.block_names)) == 6
    cache.reserve(3)
    assert cache.n_blocks == 6
    assert told(outbox) == ()


def test_truncating_frees_whole_blocks(blocks: Blocks) -> None:
    outbox, cache = blocks.outbox(), KvCache(blocks)
    cache.reserve(3 * BLOCK_SLOTS)
    names, freed = cache.block_names, []
    for length, left in ((3 * BLOCK_SLOTS, 3), (2 * BLOCK_SLOTS + 1, 3), (2 * BLOCK_SLOTS, 2), (BLOCK_SLOTS + 1, 2)):
        cache.truncate(length)
        assert (cache.length, cache.n_blocks) == (length, left)
        assert cache.block_names == names[:left]
        freed.append(told(outbox))
    assert freed == [(), (), (FreeBlocks((names[2],)),), ()]
    cache.truncate(0)
    assert (cache.length, cache.n_blocks) == (0, 0)
    [gone] = told(outbox)
    assert isinstance(gone, FreeBlocks)
    assert sorted(gone.blocks) == names[:2]


@given(committed=st.integers(0, 2 * BLOCK_SLOTS + 3), nodes=st.integers(1, BLOCK_SLOTS + 5), data=st.data())
def test_keeping_a_path_moves_what_is_not_in_its_place(committed: int, nodes: int, data: Any) -> None:
    kept = sorted(data.draw(st.sets(st.integers(committed, committed + nodes - 1))))
    blocks = Blocks()
    outbox, cache = blocks.outbox(), KvCache(blocks)
    cache.reserve(committed + nodes)
    cache.length = committed
    names = cache.block_names
    cache.keep(kept)
    assert cache.length == committed + len(kept)
    assert cache.n_blocks == blocks_for(cache.length)
    moves = [op for op in told(outbox) if isinstance(op, MoveSlot)]
    moved = [(source, target) for target, source in enumerate(kept, committed) if source != target]
    places = [[(names[slot // BLOCK_SLOTS], slot % BLOCK_SLOTS) for slot in pair] for pair in moved]
    assert moves == [MoveSlot(source, target) for source, target in places]


class TestAdoption:
    """Caches of sequences that begin alike share blocks, and go on by themselves."""

    def test_blocks_are_shared_and_count_once(self, blocks: Blocks) -> None:
        donor, heir = filled(blocks, 3 * BLOCK_SLOTS + 5), KvCache(blocks)
        heir.adopt(donor, 2)
        assert (heir.length, heir.adopted, heir.own_blocks) == (2 * BLOCK_SLOTS, 2, 0)
        assert heir.block_names == donor.block_names[:2]
        heir.reserve(2 * BLOCK_SLOTS + 3)
        assert heir.own_blocks == 1
        assert len({*heir.block_names, *donor.block_names}) == 5

    @pytest.mark.parametrize("who", ["donor", "heir"])
    @pytest.mark.parametrize("length", [1, BLOCK_SLOTS - 1, BLOCK_SLOTS + 7])
    def test_going_back_into_a_shared_block_takes_a_copy(self, blocks: Blocks, who: str, length: int) -> None:
        outbox = blocks.outbox()
        donor, heir = filled(blocks, 2 * BLOCK_SLOTS), KvCache(blocks)
        heir.adopt(donor, 2)
        back, other = (donor, heir) if who == "donor" else (heir, donor)
        names, whole = other.block_names, length // BLOCK_SLOTS
        back.truncate(length)
        assert told(outbox) == (CopyBlock(names[whole], back.block_names[whole]),)
        assert other.block_names == names
        assert back.block_names[:whole] == names[:whole]
        assert back.block_names[whole] not in names
        assert back.adopted <= length // BLOCK_SLOTS

    def test_going_back_to_the_end_of_a_shared_block_copies_nothing(self, blocks: Blocks) -> None:
        outbox = blocks.outbox()
        donor, heir = filled(blocks, 2 * BLOCK_SLOTS), KvCache(blocks)
        heir.adopt(donor, 2)
        heir.truncate(BLOCK_SLOTS)
        assert heir.block_names == donor.block_names[:1]
        assert told(outbox) == ()

    def test_a_donor_that_is_gone(self, blocks: Blocks) -> None:
        outbox = blocks.outbox()
        donor, heir = filled(blocks, 2 * BLOCK_SLOTS), KvCache(blocks)
        first, second = donor.block_names
        heir.adopt(donor, 1)
        donor.truncate(0)
        del donor
        assert told(outbox) == (FreeBlocks((second,)),)
        assert heir.block_names == [first]
        del heir
        assert told(outbox) == (FreeBlocks((first,)),)


class TestOutbox:
    """What stages are told, each by itself."""

    def test_every_stage_is_told_everything_once_and_in_order(self, blocks: Blocks) -> None:
        first, second = blocks.outbox(), blocks.outbox()
        donor, heir = filled(blocks, 2 * BLOCK_SLOTS), KvCache(blocks)
        heir.adopt(donor, 1)
        heir.truncate(3)
        copy = CopyBlock(donor.block_names[0], heir.block_names[0])
        assert told(first) == (copy,)
        assert told(first) == ()
        names = donor.block_names
        del donor
        rest = told(second)
        assert rest[0] == copy
        [gone] = rest[1:]
        assert isinstance(gone, FreeBlocks)
        assert sorted(gone.blocks) == names
        assert told(first) == (gone,)
        assert told(second) == ()

    def test_a_stage_that_comes_later_is_told_what_comes_later(self, blocks: Blocks) -> None:
        donor, heir = filled(blocks, BLOCK_SLOTS), KvCache(blocks)
        heir.adopt(donor, 1)
        heir.truncate(3)
        late = blocks.outbox()
        heir.truncate(0)
        [gone] = told(late)
        assert isinstance(gone, FreeBlocks)

    def test_what_is_not_known_to_be_done_is_told_again(self, blocks: Blocks) -> None:
        outbox = blocks.outbox()
        donor, heir = filled(blocks, BLOCK_SLOTS), KvCache(blocks)
        heir.adopt(donor, 1)
        heir.truncate(3)
        first = outbox.pending()
        assert len(first) == 1
        assert outbox.pending() == first
        heir.keep([5])
        both = outbox.pending()
        assert both[:1] == first
        outbox.done(first)
        assert outbox.pending() == both[1:]
        outbox.done(first)
        assert outbox.pending() == both[1:]
        outbox.done(both)
        assert outbox.pending() == ()
        outbox.done(())

    def test_names_never_come_again(self, blocks: Blocks) -> None:
        outbox, seen = blocks.outbox(), set()
        for _ in range(3):
            cache = filled(blocks, 2 * BLOCK_SLOTS)
            assert not seen & set(cache.block_names)
            seen |= set(cache.block_names)
            del cache
            told(outbox)
