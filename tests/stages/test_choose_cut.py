"""Which layers go to which machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cuts import COMPUTE, DISK, cut_cases, model_parts, nodes_of, shape_parts
from helpers.thorough import examples
from penstock.errors import MemoryCeilingError
from penstock.models.stage import Share
from penstock.stages.choose_cut import choose_cut
from penstock.stages.cut import Cut, ModelParts, Network, Node, forecast_cut, parse_cut
from penstock.stages.rates import ComputeSpeed
from penstock.system.sizes import MIB

NETWORK = Network(hop_seconds=1.2e-3)


def shares_of(owners: Sequence[int], nodes: int) -> list[Share | None]:
    held = [tuple(layer for layer, owner in enumerate(owners) if owner == place) for place in range(nodes)]
    return [Share(own, embedding=not place, head=not place) if own else None for place, own in enumerate(held)]


def counts(cut: Cut) -> list[int]:
    return [0 if share is None else len(share.layers) for share in cut.shares]


def owners_of(cut: Cut, layers: int) -> list[int]:
    held = {layer: place for place, share in enumerate(cut.shares) if share for layer in share.layers}
    return [held[layer] for layer in range(layers)]


def cut_or_none(parts: ModelParts, nodes: Sequence[Node], *wanted: str) -> Cut | None:
    try:
        return choose_cut(parts, nodes, NETWORK, *wanted)  # type: ignore[arg-type]
    except MemoryCeilingError:
        return None


@given(cut_cases(alike=False))
def test_every_layer_goes_to_one_machine(case: tuple[ModelParts, list[Node]]) -> None:
    parts, nodes = case
    for wanted in ((), ("runs",), ("dealt",)):
        cut = cut_or_none(parts, nodes, *wanted)
        if cut is None:
            return
        shares = [share for share in cut.shares if share is not None]
        assert sorted(layer for share in shares for layer in share.layers) == list(range(len(parts.layers)))
        assert len(cut.shares) == len(nodes)
        assert cut.shares[0] is shares[0]
        assert (shares[0].embedding, shares[0].head) == (True, True)
        assert not any(share.embedding or share.head for share in shares[1:])
        assert wanted in ((), (cut.how,))
        if cut.how == "runs":
            assert owners_of(cut, len(parts.layers)) == sorted(owners_of(cut, len(parts.layers)))


@given(cut_cases(4, 3))
@settings(max_examples=examples(20))
def test_no_other_cut_is_quicker(case: tuple[ModelParts, list[Node]]) -> None:
    """Of those in runs, none at all; of all others, none by much: with so few layers, two beside each other may fit a
    ring just as well as one."""
    parts, nodes = case
    runs, best = cut_or_none(parts, nodes, "runs"), cut_or_none(parts, nodes)
    if runs is None or best is None:
        return
    others: dict[bool, float] = {True: float("inf"), False: float("inf")}
    for owners in product(range(len(nodes)), repeat=len(parts.layers)):
        if 0 in owners:
            try:
                cut = forecast_cut(parts, nodes, shares_of(owners, len(nodes)), NETWORK)
            except MemoryCeilingError:
                continue
            in_runs = list(owners) == sorted(owners)
            others[in_runs] = min(others[in_runs], cut.seconds)
    assert runs.seconds == pytest.approx(others[True], rel=1e-9)
    assert best.seconds <= runs.seconds
    assert best.seconds <= 1.25 * others[False]


@given(cut_cases(10), st.data())
def test_a_further_machine_never_makes_it_slower(case: tuple[ModelParts, list[Node]], data: st.DataObject) -> None:
    parts, nodes = case
    before = cut_or_none(parts, nodes)
    if before is not None:
        after = choose_cut(parts, [*nodes, data.draw(st.sampled_from(nodes))], NETWORK)
        assert after.seconds <= before.seconds * (1 + 1e-6)


class TestChoice:
    def test_in_runs_where_all_fits(self) -> None:
        cut = choose_cut(model_parts([50 * MIB] * 8), nodes_of(3, 400 * MIB), NETWORK)
        assert (cut.how, cut.streamed) == ("runs", 0)
        assert cut.hops == len(cut.taking_part) - 1

    def test_the_fullest_machine_keeps_the_most_room(self) -> None:
        """One machine more than need be costs a hop; among as many, layers are shared out evenly."""
        cut = choose_cut(model_parts([50 * MIB] * 9, head=MIB), nodes_of(3, 400 * MIB), NETWORK)
        assert sorted(counts(cut)) == [0, 4, 5]

    def test_dealt_where_it_streams(self) -> None:
        cut = choose_cut(model_parts([200 * MIB] * 12, head=MIB), nodes_of(3, 300 * MIB), NETWORK)
        assert (cut.how, counts(cut)) == ("dealt", [4, 4, 4])
        assert owners_of(cut, 12) == [0, 1, 2] * 4

    def test_dealt_by_the_disks_speed(self) -> None:
        """A disk twice as fast reads twice as much in the same time."""
        nodes = [nodes_of(1, 200 * MIB)[0], *nodes_of(1, 200 * MIB, disk=2 * DISK)]
        cut = choose_cut(model_parts([60 * MIB] * 30, head=MIB), nodes, NETWORK)
        assert cut.how == "dealt"
        read = [stage.plan.streamed for stage in cut.taking_part]
        assert read[1] == pytest.approx(2 * read[0], rel=0.2)
        owners = owners_of(cut, 30)
        assert owners[0] == 0
        gaps = [b - a for a, b in pairwise([place for place, owner in enumerate(owners) if owner == 0])]
        assert {*gaps} <= {2, 3}

    def test_slow_machines_are_left_out(self) -> None:
        parts, quick = model_parts([100 * MIB] * 10), nodes_of(2, 700 * MIB)
        slow = replace(quick[0], compute=ComputeSpeed(*(rate / 20 for rate in (10e9, 40e9, 10e9, 40e9, 10e9))))
        assert counts(choose_cut(parts, [quick[0], slow, quick[1]], NETWORK))[1] == 0
        far = Network(hop_seconds=30.0)
        assert counts(choose_cut(parts, quick, far)) == [10, 0]

    def test_slow_machines_take_part_where_memory_lacks(self) -> None:
        parts, quick = model_parts([100 * MIB] * 10), nodes_of(1, 800 * MIB)
        slow = replace(quick[0], compute=ComputeSpeed(*(rate / 4 for rate in (10e9, 40e9, 10e9, 40e9, 10e9))))
        cut = choose_cut(parts, [*quick, slow], NETWORK)
        assert counts(cut)[0] > counts(cut)[1] > 0
        assert cut.seconds < choose_cut(parts, quick, NETWORK).seconds / 3

    def test_a_machine_without_room_for_a_layer_is_left_out(self) -> None:
        nodes = [*nodes_of(1, 500 * MIB), *nodes_of(1, 31 * MIB, process=30 * MIB)]
        assert counts(choose_cut(model_parts([10 * MIB] * 4), nodes, NETWORK)) == [4, 0]

    def test_what_is_wanted(self) -> None:
        parts, nodes = model_parts([50 * MIB] * 8), nodes_of(3, 300 * MIB)
        cut = choose_cut(parts, nodes, NETWORK, parse_cut("0-1,2-7", 8, 3))
        assert (cut.how, counts(cut)) == ("anyhow", [2, 6, 0])
        assert choose_cut(parts, nodes, NETWORK, "dealt").how == "dealt"

    def test_more_machines_than_layers(self) -> None:
        cut = choose_cut(model_parts([200 * MIB] * 2), nodes_of(5, 150 * MIB), NETWORK)
        assert sum(counts(cut)) == 2


class TestNoRoom:
    def test_the_first_machine_says_what_it_lacks(self) -> None:
        with pytest.raises(MemoryCeilingError, match="A memory ceiling of 20 MiB is too small") as caught:
            choose_cut(model_parts([10 * MIB] * 4), nodes_of(2, 20 * MIB), NETWORK)
        assert "The least that works is" in caught.value.remedy

    def test_keys_and_values(self) -> None:
        parts = model_parts([MIB] * 4, positions=10**6)
        [layer] = {parts.kv_bytes(1)}
        nodes = nodes_of(2, layer + 60 * MIB)
        with pytest.raises(MemoryCeilingError) as caught:
            choose_cut(parts, nodes, NETWORK)
        assert caught.value.problem == "The keys and values of 1000000 positions do not fit on these machines."


@pytest.mark.parametrize(
    ("machines", "how", "seconds", "gigabytes"),
    [
        (1, "runs", 13.7, 7.2),
        (2, "runs", 8.6, 4.6),
        (2, "dealt", 5.0, 4.9),
        (3, "runs", 3.1, 1.8),
        (3, "dealt", 1.5, 1.8),
        (4, "runs", 1.35, 0.05),
        (4, "dealt", 1.3, 0.34),
        (5, "runs", 1.18, 0.0),
    ],
)
def test_the_8b_on_machines_of_4_gb(machines: int, how: str, seconds: float, gigabytes: float) -> None:
    """Of 3 GiB each, those of Ray included, and with what it takes in the process."""
    nodes = [
        Node("", (3 << 30) - (0 if machines == 1 else 226 if place == 0 else 130) * 10**6,
             (118 if machines == 1 else 159) * 10**6, DISK, COMPUTE)
        for place in range(machines)
    ]  # fmt: skip
    cut = choose_cut(shape_parts("llama-3.1-8b"), nodes, NETWORK, how)  # type: ignore[arg-type]
    assert cut.seconds == pytest.approx(seconds, rel=0.05)
    assert cut.streamed / 1e9 == pytest.approx(gigabytes, abs=0.1)


def test_machines_that_have_a_share_do_what_they_have() -> None:
    """The first has all that nobody else has; no part has one whose layers others have, or with all."""
    parts = model_parts([20 * MIB] * 6)
    first, *rest = nodes_of(5, 400 * MIB)
    others = [replace(node, layers=held) for node, held in zip(rest, [(0, 1, 2), (2, 3), (2,), None], strict=True)]
    cut = choose_cut(parts, [first, *others], NETWORK)
    assert cut.how == "anyhow"
    assert [share and share.layers for share in cut.shares] == [(0, 4, 5), (1, 2), (3,), None, None]
    assert [share and (share.embedding, share.head) for share in cut.shares][:2] == [(True, True), (False, False)]
    assert choose_cut(parts, [first, *others], NETWORK, "runs").how == "runs"
