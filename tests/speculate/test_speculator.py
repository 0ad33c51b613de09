from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.assembled import GREEDY, generate, open_engine
from helpers.cases import CASES, random_tokens
from helpers.guessing import Key, Scripted, finish, knowing, root, sampler, speculate
from helpers.thorough import quick
from penstock import SamplingParams
from penstock.engine.engine import Engine
from penstock.models.logits import Likeliest
from penstock.models.pass_stats import PartStats, PassStats
from penstock.speculate.costs import Costs
from penstock.speculate.grow import MOST_NODES
from penstock.speculate.speculator import FEW_NODES, MOST_FIXED_NODES, NODES_A_TOKEN, Record, Speculator, walk
from penstock.speculate.tree import Claim, Tree
from penstock.speculate.worth import Worth

VOCAB, TOKENS, GIGA = 96, 20, 10**9
WRONG = (90, 91, 92)
SAMPLED = SamplingParams(temperature=1, seed=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASES["gqa-4"].write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with open_engine(path, resident=1) as engine:
        yield engine


def tree_of(*chains: Sequence[int]) -> Tree:
    tree = root()
    for chain in chains:
        node = 0
        for token in chain:
            known = tree.child(node, token)
            node = tree.add(node, token, 0.5, (Claim("d", 0.5),)) if known is None else known
    return tree


def drawing(tokens: Sequence[int | list[int] | None]) -> Callable[[int], list[int] | None]:
    """Draws of these, one after another; the sequence ends with an empty list, and a pass tells nothing at None."""
    left = iter(tokens)

    def draw(node: int) -> list[int] | None:
        token = next(left)
        return [token] if isinstance(token, int) else token

    return draw


def a_pass() -> PassStats:
    """One that reads GIGA bytes in 10 s, and computes for a tenth of a second."""
    return PassStats(1, (PartStats("head", GIGA, 9.9, 9.9, 0.1),), seconds=10, stage_seconds=10)


def in_memory(rows: int, row_seconds: float = 0.05) -> PassStats:
    """One that computes for 0.4 s, and so long a row."""
    seconds = 0.4 + row_seconds * rows
    return PassStats(rows, (PartStats("head", 0, 0, 0, seconds),), seconds=seconds, stage_seconds=seconds)


class TestWalk:
    def test_it_follows_what_is_drawn(self) -> None:
        """Each draw after the node that the draw before it led to."""
        tree = tree_of([5, 7, 8], [5, 6], [4])
        rows: list[int] = []

        def draw(node: int) -> list[int]:
            rows.append(node)
            return [{0: 5, 1: 6, 4: 9}[node]]

        assert walk(tree, draw) == rows == [0, 1, 4]

    def test_a_first_draw_that_nobody_guessed(self) -> None:
        assert walk(tree_of([5, 7], [4]), drawing([7])) == [0]

    def test_an_end_within_the_tree(self) -> None:
        assert walk(tree_of([5, 7, 8]), drawing([5, []])) == [0, 1]
        assert walk(tree_of([5, 7, 8]), drawing([[]])) == [0]

    def test_all_the_way_and_one_more(self) -> None:
        assert walk(tree_of([5, 7, 8]), drawing([5, 7, 8, 1])) == [0, 1, 2, 3]

    def test_tokens_that_come_with_a_draw_are_passed_over(self) -> None:
        assert walk(tree_of([5, 7, 8, 9]), drawing([[5, 7], 8, 1])) == [0, 1, 2, 3]
        assert walk(tree_of([5, 7, 8, 9]), drawing([[5, 6]])) == [0, 1]

    def test_a_node_whose_token_is_not_told_is_computed_anew(self) -> None:
        assert walk(tree_of([5, 7, 8]), drawing([5, None])) == [0]

    def test_a_trunk_is_there_in_any_case(self) -> None:
        tree = Tree(Key(), [1], sampler(), Any, 9, trunk=[2, 3])  # type: ignore[arg-type]
        assert (tree.tip, tree.guesses) == (2, 0)
        tree.add(tree.add(2, 4, 0.5), 5, 0.1)
        assert (tree.guesses, tree.largest(1).tokens) == (2, [1, 2, 3, 4])
        assert walk(tree, drawing([4, 5, []])) == [0, 1, 2, 3, 4]
        assert walk(tree, drawing([7])) == [0, 1, 2]


class TestRecord:
    def test_counts(self) -> None:
        record = Record()
        tree = root()
        five = tree.add(0, 5, 0.5, (Claim("lookup", 0.5), Claim("draft", 0.5)))
        tree.add(0, 4, 0.2, (Claim("draft", 0.2),))
        tree.add(five, 6, 0.2, (Claim("lookup", 0.2),))
        record.take(tree, [5, 9])
        record.take(tree, [4, 6, 6])
        record.take(tree, [1])
        record.take(root(), [1])
        assert (record.walks, record.nodes, record.accepted) == (4, 9, 2)
        assert record.reached == {1: 3, 2: 1}
        assert record.right == {1: 2}
        assert record.drafter_reached == {"lookup": 4, "draft": 3}
        assert record.drafter_right == {"lookup": 1, "draft": 2}

    def test_what_was_drawn_is_accepted_and_one_more_a_pass(self, engine: Engine) -> None:
        [(expected, _)] = generate(engine, [[1, 2, 3]], TOKENS)
        wrong = [token for token in range(VOCAB) if token not in expected][:3]
        speculate(engine, [knowing([[1, 2, 3, *expected[:9]]], wrong)], 8)
        generation = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=TOKENS))
        passes = finish(engine, [generation])
        record = generation.guesses
        assert generation.token_ids == expected
        assert record.walks == passes - 1  # the first is the prompt's
        assert passes + record.accepted == TOKENS
        assert record.accepted == sum(record.right.values()) == record.drafter_right["scripted"] == 8


class TestSpeculator:
    def speculator(self, *drafters: Scripted, fixed: int | None = None) -> Speculator:
        return Speculator(drafters, Costs(1000), fixed)

    def test_trees_come_back_in_order(self) -> None:
        roots = [root([i]) for i in (3, 1, 2)]
        trees = self.speculator(Scripted(lambda tree, node: [(tree.context[0], 0.5)] * (node == 0)), fixed=2).guess(
            roots, 0, 100
        )
        assert [tree.tokens for tree in trees] == [[3, 3], [1, 1], [2, 2]]
        assert [tree.key for tree in trees] == [tree.key for tree in roots]

    @pytest.mark.parametrize("fixed", [None, 0, 5])
    def test_no_guesses_where_none_can_count(self, fixed: int | None) -> None:
        drafter = Scripted(lambda tree, node: [(5, 0.5)])
        roots = [root(deepest=0 if fixed != 0 else 9) for _ in range(2)]
        assert [len(tree) for tree in self.speculator(drafter, fixed=fixed).guess(roots, 0, 100)] == [1, 1]
        assert not drafter.batches
        assert not drafter.begun

    def test_before_any_pass_was_measured(self) -> None:
        """A fixed number of guesses is made all the same."""
        for fixed, guesses in ((None, 0), (4, 4)):
            drafter = Scripted(lambda tree, node: [(5, 0.9)])
            assert len(self.speculator(drafter, fixed=fixed).guess([root()], 0, 100)[0]) == 1 + guesses

    def test_no_drafters(self) -> None:
        assert [len(tree) for tree in self.speculator().guess([root()], 0, 100)] == [1]

    def test_drafters_are_told_of_the_start_of_every_pass_and_of_every_end(self) -> None:
        drafters = [Scripted(lambda tree, node: [], name) for name in ("one", "two")]
        speculator = self.speculator(*drafters, fixed=3)
        roots = [root(key=Key()), root(key=Key())]
        speculator.guess(roots, 0, 100)
        speculator.learn(roots[0], [0], [7], Likeliest.of(np.zeros((1, 4), np.float32)))
        speculator.forget(roots[1].key)
        for drafter in drafters:
            assert drafter.begun == [roots]
            assert [(tree, nodes) for tree, nodes, _ in drafter.learned] == [(roots[0], [0])]
            assert drafter.forgotten == [roots[1].key]

    def test_what_was_cut_off_is_learned_from_too(self) -> None:
        """A node that a pass had no row for, and whose token was drawn all the same, was right."""
        drafter = Scripted(lambda tree, node: [(5, 0.9), (6, 0.2)] * (node == 0))
        speculator = self.speculator(drafter, fixed=1)
        for _ in range(200):
            start = root()
            [tree] = speculator.guess([start], 0, 100)
            assert len(tree) == 2
            speculator.learn(tree, [0], [6], Likeliest.of(np.zeros((2, 8), np.float32)))
        [tree] = speculator.guess([root()], 0, 100)
        assert tree.tokens[1:] == [6]

    def test_the_most_nodes_of_a_pass(self) -> None:
        assert self.speculator().most_nodes == MOST_NODES
        assert self.speculator(fixed=3).most_nodes == MOST_FIXED_NODES

    def measured(self, *drafters: Scripted, **options: Any) -> Speculator:
        """Passes of 10 s that wait for the disk."""
        speculator = Speculator(drafters, Costs(1000), None, **options)
        for _ in range(3):
            speculator.learn_pass(a_pass(), streamed=GIGA)
        return speculator

    def test_in_memory_guesses_have_to_be_earned(self) -> None:
        """There every row costs, however sure of its guesses a drafter is."""
        drafter = Scripted(lambda tree, node: [(5, 0.99)])
        speculator = Speculator([drafter], Costs(1000))
        speculator.guess([], 200, 100)
        speculator.learn_pass(in_memory(200, row_seconds=0.001), streamed=0)
        counts = []
        for turn in range(12):
            [tree] = speculator.guess([root(deepest=400)], 0, 400)
            counts.append(len(tree) - 1)
            nodes = range(len(tree)) if turn < 4 else [0]  # first all guesses are right, then none
            drawn = [5] * (len(nodes) - 1) + [6]
            speculator.learn(tree, list(nodes), drawn, Likeliest.of(np.zeros((len(tree), 8), np.float32)))
            speculator.learn_pass(in_memory(len(tree), row_seconds=0.001), streamed=0)
        assert 1 <= counts[0] <= FEW_NODES
        assert all(before < after <= NODES_A_TOKEN * (before + 1) for before, after in pairwise(counts[:4]))
        assert counts[4] > 50
        assert counts[-1] <= counts[4] / 3

    def test_room_follows_what_is_used(self) -> None:
        """Not more memory than guesses need is kept from the weights, and what they need they get."""
        right = Scripted(lambda tree, node: [(5, 0.99)])
        none = Scripted(lambda tree, node: [])
        for drafter, least, most in ((right, MOST_NODES, MOST_NODES), (none, 1, 64)):
            speculator = self.measured(drafter)
            for _ in range(12):
                speculator.guess([root(deepest=400)], 0, speculator.most_nodes)
            assert least <= speculator.most_nodes <= most
        speculator.drafters = [right]
        for _ in range(12):
            speculator.guess([root(deepest=400)], 0, speculator.most_nodes)
        assert speculator.most_nodes == MOST_NODES

    def test_a_drafter_that_never_pays_is_asked_again_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Costs, "draft_seconds", lambda *_: 1000.0)  # far longer than a pass
        drafter = Scripted(lambda tree, node: [(5, 0.9)], free=False)
        speculator = self.measured(drafter)
        asked = []
        for _ in range(400):
            before = len(drafter.batches)
            [tree] = speculator.guess([root()], 0, 100)
            asked.append(len(drafter.batches) > before)
            speculator.learn(tree, [0], [6], Likeliest.of(np.zeros((len(tree), 8), np.float32)))
        assert 3 <= sum(asked[50:]) <= 40
        assert any(asked[-100:])

    def test_one_that_is_not_worth_its_memory_is_dropped(self) -> None:
        dropped: list[bool] = []
        draft, lookup = (Scripted(lambda tree, node: [(5, 0.5)], name, free=False) for name in ("draft", "lookup"))
        speculator = self.measured(draft, lookup, worth=Worth("draft", GIGA // 2), drop=lambda: dropped.append(True))
        for _ in range(50):
            [tree] = speculator.guess([root()], 0, 100)
            speculator.learn(tree, [0], [6], Likeliest.of(np.zeros((len(tree), 8), np.float32)))
            speculator.learn_pass(a_pass(), streamed=GIGA)
        assert dropped == [True]
        assert speculator.drafters == [lookup]

    def test_a_fixed_number_of_guesses_keeps_all(self) -> None:
        worth = Worth("draft", GIGA // 2)
        draft = Scripted(lambda tree, node: [(5, 0.5)], "draft", free=False)
        speculator = Speculator([draft], Costs(1000), 3, worth=worth, drop=lambda: pytest.fail("dropped"))
        for _ in range(50):
            [tree] = speculator.guess([root()], 0, 100)
            speculator.learn(tree, [0], [6], Likeliest.of(np.zeros((len(tree), 8), np.float32)))
            speculator.learn_pass(a_pass(), streamed=GIGA)
        assert speculator.drafters == [draft]


class TestInTheEngine:
    """Guesses change how many passes there are, and nothing else."""

    def expected(self, engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        speculator, engine.speculator = engine.speculator, Speculator([], Costs(1))
        tokens = [tokens for tokens, _ in generate(engine, prompts, TOKENS, params)]
        engine.speculator = speculator
        return tokens

    def guessed(
        self, engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams = GREEDY
    ) -> tuple[list[list[int]], int]:
        generations = [engine.add(prompt, params, TOKENS) for prompt in prompts]
        passes = finish(engine, generations)
        return [generation.token_ids for generation in generations], passes

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED])
    @pytest.mark.parametrize("fixed", quick([3, 7], [1, 3, 7, 100]))
    def test_right_guesses_save_passes(self, engine: Engine, fixed: int, params: SamplingParams) -> None:
        [tokens] = self.expected(engine, [[1, 2]], params)
        speculate(engine, [knowing([[1, 2, *tokens]])], fixed)
        assert self.guessed(engine, [[1, 2]], params) == ([tokens], 1 + -(-(TOKENS - 1) // (fixed + 1)))

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED])
    def test_wrong_guesses_save_none(self, engine: Engine, params: SamplingParams) -> None:
        [tokens] = self.expected(engine, [[1, 2]], params)
        wrong = [token for token in range(VOCAB) if token not in tokens][:3]
        speculate(engine, [knowing([], wrong)], 30)
        assert self.guessed(engine, [[1, 2]], params) == ([tokens], TOKENS)

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED])
    @pytest.mark.parametrize("max_rows", quick([11], [4096, 60, 11, 5]))
    def test_sequences_that_share_passes(self, path: Path, params: SamplingParams, max_rows: int) -> None:
        """One all of whose guesses are right, one with none, one with some; long prompts in chunks beside trees."""
        prompts = [random_tokens(n, VOCAB, seed=n) for n in (3, 9, 70)]
        with open_engine(path, resident=1, max_rows=max_rows) as engine:
            expected = self.expected(engine, prompts, params)
            texts = [prompt + tokens for prompt, tokens in zip(prompts, expected, strict=True)]
            texts[2] = texts[2][:80]
            wrong = set(range(VOCAB)).difference(*expected)
            speculate(engine, [knowing([texts[0], texts[2]], sorted(wrong)[:3])], 6)
            tokens, passes = self.guessed(engine, prompts, params)
        assert tokens == expected
        if max_rows == 4096:
            assert passes == TOKENS  # as many as the one without right guesses needs

    def test_rows_of_a_pass_are_bounded(self, path: Path) -> None:
        with open_engine(path, resident=1, max_rows=9) as engine:
            speculate(engine, [knowing([], range(50))], 256)
            generations = [engine.add([1, 2], GREEDY, 5) for _ in range(2)]
            while any(generation.finish_reason is None for generation in generations):
                assert engine.step().rows <= 9

    def test_guesses_end_where_the_sequence_must(self, engine: Engine) -> None:
        """No row is spent on what could not be drawn any more, and the cache never grows past its promise."""
        [tokens] = self.expected(engine, [[1, 2]], GREEDY)
        drafter = knowing([[1, 2, *tokens, 1, 2, 3]])
        speculate(engine, [drafter], 100)
        generation = engine.add([1, 2], GREEDY, 6)
        rows = [engine.step().rows, engine.step().rows]
        assert rows == [2, 5]
        assert generation.token_ids == tokens[:6]
        assert generation.finish_reason == "length"

    def test_the_end_of_the_context(self, path: Path) -> None:
        with open_engine(path, resident=1, context=16) as engine:
            [(tokens, _)] = generate(engine, [[1] * 10], 6)
            speculate(engine, [knowing([[1] * 10 + tokens * 9])], 100)
            generation = engine.add([1] * 10, GREEDY)
            assert finish(engine, [generation]) == 2
            assert (generation.token_ids, generation.finish_reason) == (tokens, "length")

    @pytest.mark.parametrize("last", range(1, 9))
    def test_a_stop_token_within_an_accepted_run(self, path: Path, last: int) -> None:
        with open_engine(path, resident=1) as engine:
            [(tokens, _)] = generate(engine, [[1, 2, 3]], TOKENS)
        eos = tokens[last]
        with open_engine(path, resident=1, eos=(eos,)) as engine:
            plain = engine.add([1, 2, 3], GREEDY, TOKENS)
            finish(engine, [plain])
            speculate(engine, [knowing([[1, 2, 3, *tokens]])], 100)
            generation = engine.add([1, 2, 3], GREEDY, TOKENS)
            assert finish(engine, [generation]) <= 2
        assert generation.token_ids == plain.token_ids == tokens[: tokens.index(eos)]
        assert generation.finish_reason == plain.finish_reason == "stop"

    def test_a_repetition_penalty_sees_the_tokens_of_the_same_run(self, engine: Engine) -> None:
        params = SamplingParams(temperature=0, repetition_penalty=3.0)
        [tokens] = self.expected(engine, [[1, 2]], params)
        assert [tokens] != self.expected(engine, [[1, 2]], GREEDY)
        speculate(engine, [knowing([[1, 2, *tokens]])], 100)
        assert self.guessed(engine, [[1, 2]], params) == ([tokens], 2)

    def test_a_sequence_that_ends_is_forgotten(self, engine: Engine) -> None:
        drafter = knowing([])
        speculator = speculate(engine, [drafter], 4)
        generation = engine.add([1, 2], GREEDY, 3)
        finish(engine, [generation])
        engine.cancel(generation)
        assert generation in drafter.forgotten
        assert not speculator._grown
        assert generation.cache.n_blocks == 0

    def test_a_sequence_may_be_cancelled_between_passes(self, engine: Engine) -> None:
        prompts = [[1, 2], [3, 4]]
        expected = self.expected(engine, prompts, GREEDY)
        texts = [prompt + tokens for prompt, tokens in zip(prompts, expected, strict=True)]
        speculate(engine, [knowing(texts)], 2)
        first, second = (engine.add(prompt, GREEDY, TOKENS) for prompt in prompts)
        engine.step()
        engine.step()
        engine.cancel(first)
        finish(engine, [second])
        assert second.token_ids == expected[1]
        assert first.token_ids == expected[0][: len(first.token_ids)]

    def test_caches_hold_what_was_said_and_nothing_else(self, engine: Engine) -> None:
        [tokens] = self.expected(engine, [[1, 2]], GREEDY)
        speculate(engine, [knowing([[1, 2, *tokens]], WRONG)], 5)
        generation = engine.add([1, 2], GREEDY, TOKENS)
        while generation.finish_reason is None:
            engine.step()
            assert generation.cache.length == 1 + len(generation.token_ids) or generation.finish_reason

    def test_what_drafters_learn(self, engine: Engine) -> None:
        """The likeliest tokens after every node, and the nodes whose tokens were drawn."""
        [tokens] = self.expected(engine, [[1, 2]], GREEDY)
        drafter = knowing([[1, 2, *tokens]], WRONG)
        speculate(engine, [drafter], 6)
        self.guessed(engine, [[1, 2]])
        assert drafter.learned
        for tree, nodes, likeliest in drafter.learned:
            assert len(likeliest) == len(tree)
            assert [int(likeliest.tokens[node, 0]) for node in nodes[:-1]] == [tree.tokens[node] for node in nodes[1:]]
        assert Counter(len(nodes) > 1 for _, nodes, _ in drafter.learned)[True] > 0

    @pytest.mark.parametrize("fixed", [3, None])
    def test_stats_of_a_pass(self, engine: Engine, fixed: int | None) -> None:
        speculate(engine, [knowing([], WRONG)], fixed)
        engine.add([1, 2], GREEDY, 6)
        first, second = engine.step(), engine.step()
        assert (first.rows, first.guesses, first.draft_seconds) == (2, 0, 0)
        assert second.rows == second.guesses + 1
        assert 0 < second.draft_seconds < second.seconds
        assert second.guesses == 3 if fixed else second.guesses <= MOST_NODES
        assert second.totals().guesses == second.guesses
