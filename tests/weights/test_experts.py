"""Which experts stay in memory: within the budget, the ones that their layer used last."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.thorough import examples
from penstock.weights.experts import ExpertResidency, room_for

PARTS = 3


def residency(layers: int, count: int, nbytes: int = 5000, budget: int = 0) -> ExpertResidency:
    """Experts of three parts each, behind 10 parts of other matrices a layer."""
    step = 10 + count * PARTS
    ranges = [
        [range(layer * step + 10 + number * PARTS, layer * step + 10 + (number + 1) * PARTS) for number in range(count)]
        for layer in range(layers)
    ]
    found = ExpertResidency(ranges, [nbytes] * (layers * step))
    found.limit(budget)
    return found


def parts_of(layer: int, numbers: list[int], count: int) -> list[int]:
    begin = layer * (10 + count * PARTS) + 10
    return [begin + number * PARTS + part for number in numbers for part in range(PARTS)]


def read(experts: ExpertResidency, parts: list[int]) -> set[int]:
    """Read parts as the reader does: those that stay."""
    return {part for part in parts if (b := experts.buffer(part)) is not None and experts.arrived(part, b)}


EXPERT = PARTS * room_for(5000)


def test_what_was_used_often_and_lately_stays() -> None:
    experts = residency(1, 8, budget=2 * EXPERT)
    for _ in range(3):
        experts.use(parts_of(0, [1], 8))
    assert experts.use(parts_of(0, [2], 8)) == []
    read(experts, parts_of(0, [1, 2], 8))
    assert experts.use(parts_of(0, [3], 8)) == parts_of(0, [2], 8)
    read(experts, parts_of(0, [3], 8))
    for _ in range(12):  # uses fade
        experts.use(parts_of(0, [4], 8))
        read(experts, parts_of(0, [4], 8))
    assert {part for part in parts_of(0, [1, 2, 3, 4], 8) if part in experts} >= {*parts_of(0, [4], 8)}
    assert parts_of(0, [3], 8)[0] not in experts or parts_of(0, [1], 8)[0] not in experts


def test_what_was_used_last_stays() -> None:
    experts = residency(1, 8, budget=3 * EXPERT)
    assert experts.use(parts_of(0, [1, 2], 8)) == []
    assert len(read(experts, parts_of(0, [1, 2], 8))) == 6
    experts.use(parts_of(0, [1, 5], 8))
    read(experts, parts_of(0, [5], 8))
    assert experts.use(parts_of(0, [6], 8)) == parts_of(0, [2], 8)


def test_all_layers_keep_as_many() -> None:
    experts = residency(4, 8, budget=8 * EXPERT)
    for _ in range(3):
        for layer in range(4):
            experts.use(parts_of(layer, [0, 1, 2, 3], 8))
            read(experts, parts_of(layer, [0, 1, 2, 3], 8))
    assert [len(kept) for kept in experts._kept] == [2, 2, 2, 2]


def test_more_than_there_is_room_for() -> None:
    experts = residency(1, 8, budget=2 * EXPERT)
    wanted = parts_of(0, [0, 1, 2, 3], 8)
    assert experts.use(wanted) == []
    assert read(experts, wanted) == {*parts_of(0, [0, 1], 8)}
    assert experts.buffer(parts_of(0, [2], 8)[0]) is None


def test_other_parts_have_no_place_here() -> None:
    experts = residency(1, 2, budget=EXPERT)
    assert [experts.buffer(part) for part in (0, 9, 16)] == [None] * 3
    assert residency(0, 0).buffer(3) is None


def test_a_buffer_that_may_be_being_read_into_is_not_used_again() -> None:
    experts = residency(1, 8, budget=EXPERT)
    experts.use(parts_of(0, [1], 8))
    [reading, *_] = parts = parts_of(0, [1], 8)
    buffer = experts.buffer(reading)
    assert experts.limit(0) == [reading]
    assert buffer is not None
    assert not experts.arrived(reading, buffer)
    experts.limit(EXPERT)
    experts.use(parts_of(0, [2], 8))
    assert all(experts.buffer(part) is not buffer for part in parts_of(0, [2], 8))
    assert experts.buffer(parts[0]) is None


def test_two_reads_of_a_part_never_share_a_buffer() -> None:
    """As when the reader comes to it in its turn, although it was demanded: the first read may be under way still."""
    experts = residency(1, 8, budget=2 * EXPERT)
    experts.use(parts_of(0, [1], 8))
    part, *_ = parts_of(0, [1], 8)
    first, second = experts.buffer(part), experts.buffer(part)
    assert first is not None
    assert second is not None
    assert first is not second
    assert not experts.arrived(part, first), "what is kept is in the other"
    assert experts.arrived(part, second)
    assert not experts.arrived(part, second)
    assert experts.buffer(part) is None, "it is there"
    experts.limit(0)
    experts.limit(2 * EXPERT)
    experts.use(parts_of(0, [2, 3], 8))
    assert all(experts.buffer(other) is not first for other in parts_of(0, [2, 3], 8))


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_whatever_is_used_the_budget_holds(data: Any) -> None:
    layers, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    sizes = st.sampled_from([100, 5000, 70_000])
    experts = residency(layers, count)
    experts._sizes = [data.draw(sizes) for _ in experts._sizes]
    there: set[int] = set()
    budget = 0
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.integers(0, 3)) == 0:
            budget = data.draw(st.integers(0, 12)) * 40_000
            there.difference_update(experts.limit(budget))
        numbers = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
        wanted = parts_of(data.draw(st.integers(0, layers - 1)), numbers, count)
        dropped = experts.use(wanted)
        assert not {*dropped} & {*wanted} or not dropped
        there.difference_update(dropped)
        there |= read(experts, [part for part in wanted if part not in there])
        assert there == experts._there
        assert sum(room_for(experts._sizes[part]) for part in there) <= experts._held <= budget
        buffers = [id(experts._buffers[part]) for part in there]
        assert len({*buffers}) == len(buffers)
