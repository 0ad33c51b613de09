"""What to expect of a cut, and what `--cut` means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from helpers.cuts import DISK, cut_cases, model_parts, nodes_of, shape_parts
from penstock.errors import MemoryCeilingError, UsageError
from penstock.memory.budget import LEAST_CHUNK_ROWS, RAW_FILL, Demand, choose_ring
from penstock.models.stage import Share
from penstock.stages.choose_cut import choose_cut
from penstock.stages.cut import (
    Cut,
    How,
    ModelParts,
    Network,
    Node,
    StageForecast,
    even_reach,
    forecast_cut,
    longest_reach,
    parse_cut,
    turns_of,
)
from penstock.stages.rates import ComputeSpeed
from penstock.system.sizes import MIB
from penstock.weights.sizes import StoredSize

NETWORK = Network()
WAYS: tuple[How, ...] = ("runs", "dealt")


def taking_part(cut: Cut, place: int) -> StageForecast:
    stage = cut.stages[place]
    assert stage is not None
    return stage


def by_formula(cut: Cut, parts: ModelParts, *, full: bool) -> float:
    """Seconds of a pass whose turns all find their ring full, or all empty."""
    seconds = cut.hops * NETWORK.seconds(parts.row_bytes)
    for stage in cut.taking_part:
        own = sum(parts.layers[layer].nbytes for layer in stage.share.layers)
        for turn, head in turns_of(stage.share, len(parts.layers)):
            part = sum(parts.layers[layer].nbytes for layer in turn) / own
            seconds += stage.work(part, head).seconds(stage.ahead if full else 0)
    return max(seconds, *(stage.disk_seconds for stage in cut.taking_part))


@given(cut_cases(12, alike=False))
def test_bounds_of_a_pass(case: tuple[ModelParts, list[Node]]) -> None:
    parts, nodes = case
    for how in WAYS:
        try:
            cut = choose_cut(parts, nodes, NETWORK, how)
        except MemoryCeilingError:
            return
        assert by_formula(cut, parts, full=True) <= cut.seconds * 1.001  # passes grow alike by and by
        assert cut.seconds <= by_formula(cut, parts, full=False) * 1.001


@pytest.mark.parametrize("machines", [1, 2, 3, 4])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("gigabytes", [1, 2, 3, 5])
def test_turns_at_equal_distances_take_just_that(gigabytes: int, how: How, machines: int) -> None:
    parts = model_parts([gigabytes * 1000 * MIB // 12] * 12, head=MIB)
    cut = choose_cut(parts, nodes_of(machines, 300 * MIB), NETWORK, how)
    assert cut.seconds == pytest.approx(by_formula(cut, parts, full=True), rel=0.05)


class TestForecast:
    def test_one_machine_is_as_without_a_cluster(self) -> None:
        parts, node = model_parts([100 * MIB] * 4), nodes_of(1, 200 * MIB)[0]
        cut = forecast_cut(parts, [node], [Share((0, 1, 2, 3))], NETWORK)
        budget = parts.budget(node, Share((0, 1, 2, 3)), StoredSize(420 * MIB, 420 * MIB))
        plan = budget.plan(Demand(kv=parts.kv_bytes(4)))
        assert taking_part(cut, 0).plan == plan
        assert (cut.hops, cut.streamed) == (0, plan.streamed)
        assert cut.seconds == pytest.approx(plan.streamed / DISK)
        assert taking_part(cut, 0).share.window == 0

    def test_in_memory_arithmetic_adds_up_and_hops_come_to_it(self) -> None:
        parts, nodes = model_parts([100 * MIB] * 4), nodes_of(2, 800 * MIB)
        shares = [Share((0, 1)), Share((2, 3), embedding=False, head=False)]
        cut = forecast_cut(parts, nodes, shares, NETWORK)
        assert (cut.streamed, cut.hops) == (0, 1)
        assert cut.seconds == pytest.approx(420 * MIB / 10e9 + NETWORK.seconds(parts.row_bytes))
        assert [taking_part(cut, place).compute_seconds for place in (0, 1)] == pytest.approx(
            [220 * MIB / 10e9, 200 * MIB / 10e9]
        )

    def test_in_runs_disks_rest_but_for_the_ring(self) -> None:
        parts, nodes = model_parts([200 * MIB] * 8), nodes_of(2, 300 * MIB)
        cut = choose_cut(parts, nodes, NETWORK, "runs")
        ring = RAW_FILL * choose_ring(300 * MIB).nbytes
        expected = (cut.streamed - 2 * ring) / DISK + NETWORK.seconds(parts.row_bytes)
        assert cut.seconds == pytest.approx(expected, rel=1e-3)

    def test_dealt_disks_read_at_the_same_time(self) -> None:
        parts, nodes = model_parts([200 * MIB] * 8), nodes_of(2, 300 * MIB)
        cut = choose_cut(parts, nodes, NETWORK, "dealt")
        assert cut.seconds == pytest.approx(cut.streamed / 2 / DISK, rel=0.1)
        assert cut.seconds < 0.65 * choose_cut(parts, nodes, NETWORK, "runs").seconds

    @pytest.mark.parametrize("machines", [2, 3, 4])
    def test_a_ring_holds_what_comes_between_turns(self, machines: int) -> None:
        """Half of what a layer streams where there are two machines, two thirds where there are three."""
        parts = model_parts([140 * MIB] * 24, head=MIB)
        cut = choose_cut(parts, nodes_of(machines, 400 * MIB), NETWORK, "dealt")
        disks = [stage.disk_seconds for stage in cut.taking_part]
        assert cut.seconds == pytest.approx(max(disks), rel=0.01)
        for stage in cut.taking_part:
            count = len(stage.share.layers)
            assert count == 24 // machines
            assert stage.share.window == pytest.approx((1 - 1 / machines) * stage.plan.scanned / count, rel=0.03)
            assert stage.ahead >= stage.share.window
            assert stage.plan.ring <= stage.share.window / RAW_FILL + 2 * choose_ring(400 * MIB).piece_bytes

    def test_the_usual_ring_is_kept_where_it_is_enough(self) -> None:
        parts = model_parts([60 * MIB] * 12, head=MIB)
        cut = choose_cut(parts, nodes_of(2, 300 * MIB), NETWORK, "dealt")
        assert cut.streamed > 200 * MIB
        assert {stage.plan.ring for stage in cut.taking_part} == {choose_ring(300 * MIB).nbytes}
        assert cut.seconds == pytest.approx(max(stage.disk_seconds for stage in cut.taking_part), rel=0.01)

    def test_turns_at_unequal_distances_take_a_larger_ring(self) -> None:
        share = Share((0, 1, 4, 7), head=False)
        assert even_reach(share, 8) == 0.5
        assert longest_reach(share, 8) == 1.5
        assert longest_reach(Share((1, 3, 5, 7)), 8) == 0.5
        assert even_reach(Share((1, 2, 3)), 8) == longest_reach(Share((1, 2, 3)), 8) == 0.0

    def test_a_ring_leaves_weights_half_of_the_room(self) -> None:
        parts, nodes = model_parts([3000 * MIB] * 4), nodes_of(2, 300 * MIB)
        for stage in choose_cut(parts, nodes, NETWORK, "dealt").taking_part:
            assert stage.plan.resident > 80 * MIB
            assert stage.plan.ring < 200 * MIB

    def test_experts_are_read_in_their_turn(self) -> None:
        """So dealing them out gains nothing."""
        parts = shape_parts("qwen3-30b-a3b")
        cut = choose_cut(parts, nodes_of(4, 2850 * MIB), NETWORK, "dealt")
        experts = sum(stage.demanded for stage in cut.taking_part)
        assert experts > 0.5 * cut.streamed
        assert cut.seconds > experts / DISK
        often = choose_cut(replace(parts, hit_rate=0.95), nodes_of(4, 2850 * MIB), NETWORK, "dealt")
        assert often.seconds < cut.seconds / 2

    def test_a_ring_that_takes_many_passes_to_run_dry(self) -> None:
        parts = model_parts([MIB], 28 * MIB, 1)
        node = Node("", 60 * MIB, 0, 1e8, ComputeSpeed(1e9, 1e9, 1e9, 1e9, 1e9))
        cut = forecast_cut(parts, [node], [Share((0,))], NETWORK)
        stage = cut.taking_part[0]
        assert stage.ahead > 2 * stage.node.disk_bytes * (stage.disk_seconds - stage.compute_seconds) > 0
        assert cut.seconds == stage.disk_seconds

    def test_the_network(self) -> None:
        assert Network(0.001, 1e6).seconds(500) == pytest.approx(0.002)

    def test_a_machine_that_is_too_small_for_its_share(self) -> None:
        parts = model_parts([10 * MIB] * 4, positions=1000)
        shares = [Share((0,)), Share((1, 2, 3), embedding=False, head=False)]
        nodes = [*nodes_of(1, 500 * MIB), *nodes_of(1, 40 * MIB, process=30 * MIB)]
        with pytest.raises(MemoryCeilingError, match="A memory ceiling of 40 MiB is too small"):
            forecast_cut(parts, nodes, shares, NETWORK)


@given(cut_cases(alike=False))
def test_a_stage_keeps_within_its_ceiling(case: tuple[ModelParts, list[Node]]) -> None:
    """By the budget that it will have, also in a short chunk of a prompt."""
    parts, nodes = case
    for how in WAYS:
        try:
            cut = choose_cut(parts, nodes, NETWORK, how)
        except MemoryCeilingError:
            return
        for stage in cut.taking_part:
            share, plan = stage.share, stage.plan
            sizes = [parts.layers[layer] for layer in share.layers] + [parts.head] * share.head
            whole = sum(sizes[1:], sizes[0])
            budget = replace(parts.budget(stage.node, share, whole), window=share.window)
            kv = parts.kv_bytes(len(share.layers))
            assert budget.plan(Demand(kv=kv)) == plan
            used = plan.process + plan.ring + plan.allowance + plan.kv + plan.activations + plan.resident
            assert used <= plan.ceiling == stage.node.ceiling
            assert stage.full == (1.0 if plan.streamed else used / plan.ceiling)
            assert plan.resident + plan.streamed == whole.nbytes or plan.resident == plan.indexed or plan.indexed
            assert budget.plan(Demand(LEAST_CHUNK_ROWS, 1, kv)).resident >= 0


@pytest.mark.parametrize(
    ("share", "turns"),
    [
        (Share((0, 1, 2, 3)), [((0, 1, 2, 3), True)]),
        (Share((0, 1)), [((0, 1), True)]),
        (Share((0, 2)), [((0,), True), ((2,), False)]),
        (Share((0, 3)), [((0, 3), True)]),
        (Share((1, 3)), [((1,), False), ((3,), True)]),
        (Share((1, 2)), [((1, 2), False), ((), True)]),
        (Share((0, 1, 3), head=False), [((0, 1), False), ((3,), False)]),
        (Share((1, 2, 3), head=False), [((1, 2, 3), False)]),
    ],
)
def test_turns(share: Share, turns: list[tuple[tuple[int, ...], bool]]) -> None:
    """The head comes after the last layer, and before the first one of the next pass."""
    found = turns_of(share, 4)
    assert [(tuple(sorted(layers)), head) for layers, head in found] == turns


class TestParsing:
    def test_ways(self) -> None:
        assert [parse_cut(way, 32, 3) for way in WAYS] == ["runs", "dealt"]

    @pytest.mark.parametrize(
        ("text", "held"),
        [
            ("0-3", [(0, 1, 2, 3)]),
            ("0-1,2-3", [(0, 1), (2, 3)]),
            (" 0 - 1 , 2 , 3 ", [(0, 1), (2,), (3,)]),
            ("2-3,0-1", [(2, 3), (0, 1)]),
        ],
    )
    def test_ranges(self, text: str, held: list[tuple[int, ...]]) -> None:
        """The first part is this machine's, which has embedding and head."""
        expected = tuple(Share(own, embedding=not place, head=not place) for place, own in enumerate(held))
        assert parse_cut(text, 4, 3) == expected

    @pytest.mark.parametrize(
        ("text", "problem", "remedy"),
        [
            ("0-1,2", "The cut 0-1,2 is not whole: layer 3 goes to no machine.", "Name each of 0 to 3 once."),
            ("1-3", "The cut 1-3 is not whole: layer 0 goes to no machine.", "Name each of 0 to 3 once."),
            ("0-2,2-3", "The cut 0-2,2-3 is not whole: layer 2 goes to two machines.", "Name each of 0 to 3 once."),
            ("0-4", "The cut 0-4 names layer 4, but the last one is 3.", "End with 3."),
            ("0-1,2,3", "The cut 0-1,2,3 has 3 parts for 2 machines.", "Give one for each at most."),
        ],
    )
    def test_what_is_wrong(self, text: str, problem: str, remedy: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_cut(text, 4, 2)
        assert (caught.value.problem, caught.value.remedy) == (problem, remedy)

    @pytest.mark.parametrize("text", ["", "run", "0-1,,2-3", "3-0", "-1", "0-1;2-3", "a-b", "0-\u0663", "0-1-2", "1e3"])
    def test_junk(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_cut(text, 4, 2)
        assert caught.value.problem == f"{text!r} is no cut."
        assert "0-9,10-20,21-31" in caught.value.remedy
