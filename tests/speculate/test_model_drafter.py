from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.assembled import GREEDY, commit, generate, new_cache, open_engine, stage_of
from helpers.cases import CASES, random_tokens
from helpers.guessing import finish, speculate
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock import SamplingParams
from penstock.compute.kernels import F32
from penstock.engine import sequence as engine_sequence
from penstock.engine.engine import Engine
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import KvCache
from penstock.models.logits import Likeliest
from penstock.models.rows import Rows, SequenceRows
from penstock.speculate import model_drafter
from penstock.speculate.drafter import MOST_GUESSES, Guess
from penstock.speculate.model_drafter import ModelDrafter
from penstock.speculate.tree import Tree

VOCAB, TOKENS, LAYERS = 96, 24, 2
SAMPLED = SamplingParams(temperature=1, seed=3)


class Observed(ModelDrafter):
    """Keeps the rows that went through its model, and what passes told."""

    def __init__(
        self, name: str, model: Decoder, through: Callable[[Rows], F32], new_cache: Callable[[], KvCache] | None = None
    ) -> None:
        super().__init__(name, model, self.observed, new_cache)
        self.real = through
        self.rows: list[Rows] = []
        self.learned: list[tuple[Tree, list[int], Likeliest, dict[int, F32], Tree]] = []

    def observed(self, rows: Rows) -> F32:
        self.rows.append(rows)
        return self.real(rows)

    def learn(self, tree: Tree, walk: Sequence[int], likeliest: Likeliest) -> None:
        draft = self._drafts[tree.key]
        self.learned.append((tree, list(walk), likeliest, dict(draft.hidden), draft.tree))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return CASES["gqa-4"].write(folder / "target"), CASES["gqa-1"].write(folder / "draft", seed=1)


@pytest.fixture
def target(paths: tuple[Path, Path]) -> Iterator[Engine]:
    with open_engine(paths[0], resident=1) as engine:
        yield engine


@pytest.fixture
def other(paths: tuple[Path, Path]) -> Iterator[Engine]:
    with open_engine(paths[1], resident=1) as engine:
        yield engine


@pytest.fixture
def twin(paths: tuple[Path, Path]) -> Iterator[Engine]:
    """The target once more."""
    with open_engine(paths[0], resident=1) as engine:
        yield engine


def with_cache(draft: Engine) -> Observed:
    model = stage_of(draft).decoder
    return Observed("draft", model, model.hidden, lambda: new_cache(draft))


def on_targets_cache(target: Engine) -> Observed:
    return Observed("coarse", stage_of(target).decoder, lambda rows: target.chain.hidden(rows, range(LAYERS)))


def slots_of(engine: Engine, cache: KvCache, count: int) -> list[bytes]:
    return [engine.chain.read_slot(cache, slot) for slot in range(count)]


class TestOwnCache:
    @pytest.mark.parametrize("params", quick([SAMPLED], [GREEDY, SAMPLED]))
    @pytest.mark.parametrize("lengths", [[7], [3, 40, 90]])
    @pytest.mark.parametrize("itself", [True, False])
    def test_it_holds_what_a_fresh_prefill_would(
        self, target: Engine, other: Engine, twin: Engine, lengths: list[int], params: SamplingParams, itself: bool
    ) -> None:
        """After every pass, however many guesses of the last were right: all tokens before the root."""
        draft = twin if itself else other
        drafter = with_cache(draft)
        prompts = [random_tokens(n, VOCAB, seed=n) for n in lengths]
        expected = [tokens for tokens, _ in generate(target, prompts, TOKENS, params)]
        speculate(target, [drafter], 5)
        generations = [target.add(prompt, params, TOKENS) for prompt in prompts]
        checked = 0
        while any(generation.finish_reason is None for generation in generations):
            target.step()
            for generation in generations:
                held = drafter._drafts.get(generation)
                if held is None or generation.finish_reason is not None:
                    continue
                before = held.tree.context[:-1]
                assert held.cache.length == len(before)
                fresh = new_cache(draft)
                commit(draft, fresh, before)
                assert slots_of(draft, held.cache, len(before)) == slots_of(draft, fresh, len(before))
                checked += len(before) > len(generation.prompt)
        assert checked
        assert [generation.token_ids for generation in generations] == expected

    def test_right_guesses_do_not_go_through_the_model_again(self, target: Engine, twin: Engine) -> None:
        """But for those that nobody had asked about: the last ones of a walk."""
        drafter = with_cache(twin)
        speculate(target, [drafter], 6)
        generation = target.add([1, 2, 3], GREEDY, TOKENS)
        passes = finish(target, [generation])
        assert generation.guesses.accepted > TOKENS / 3
        plain = [len(rows) for rows in drafter.rows if not len(rows.sequences[0].tail_slots)]
        assert plain[0] == 3  # the prompt
        assert all(count == 1 for count in plain[1:])
        assert len(plain) <= passes

    def test_a_long_prompt_goes_through_in_chunks(
        self, target: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_drafter, "CHUNK_ROWS", 7)
        drafter = with_cache(other)
        speculate(target, [drafter], 2)
        finish(target, [target.add(random_tokens(30, VOCAB), GREEDY, 3)])
        assert [len(rows) for rows in drafter.rows][:5] == [7, 7, 7, 7, 2]

    def test_the_end_of_a_sequence_frees_it(self, target: Engine, other: Engine) -> None:
        drafter = with_cache(other)
        speculate(target, [drafter], 2)
        generations = [target.add([1, 2], GREEDY, n) for n in (3, 9)]
        while generations[0].finish_reason is None:
            target.step()
        target.step()
        assert list(drafter._drafts) == [generations[1]]
        target.cancel(generations[1])
        assert not drafter._drafts


class TestTargetsCache:
    @pytest.mark.parametrize(
        "params", [GREEDY, SAMPLED, SamplingParams(temperature=0.7, repetition_penalty=1.3, seed=3)]
    )
    @pytest.mark.parametrize("lengths", [[7], [3, 40, 90]])
    def test_the_target_guesses_what_it_draws(self, target: Engine, lengths: list[int], params: SamplingParams) -> None:
        """Every first guess is right, noise and penalty included."""
        prompts = [random_tokens(n, VOCAB, seed=n) for n in lengths]
        expected = [tokens for tokens, _ in generate(target, prompts, TOKENS, params)]
        drafter = on_targets_cache(target)
        speculate(target, [drafter], 4)
        generations = [target.add(prompt, params, TOKENS) for prompt in prompts]
        passes = finish(target, generations)
        assert [generation.token_ids for generation in generations] == expected
        assert passes < TOKENS * 0.7
        texts = {generation: generation.tokens for generation in generations}
        checked = 0
        for tree, walk, _, _, grown in drafter.learned:
            text: list[int] = texts[tree.key]  # type: ignore[index]
            for node in walk:
                known = node_of(grown, tree.path(node))
                for first in list(grown.children(known))[:1]:
                    checked += 1
                    assert grown.tokens[first] == text[len(tree.context) + tree.depth(node)]
        assert checked > TOKENS / 2

    @pytest.mark.parametrize("kv", ["bf16", "f32"])
    @pytest.mark.parametrize("lengths", [[31], [3, 40, 90]])
    def test_hidden_rows_are_those_of_a_pass(self, paths: tuple[Path, Path], kv: str, lengths: list[int]) -> None:
        """Bit for bit, at right and at wrong guesses."""
        with open_engine(paths[0], resident=1, kv=kv) as target:
            drafter = on_targets_cache(target)
            speculate(target, [drafter], 12)
            generations = [target.add(random_tokens(n, VOCAB, seed=n), SAMPLED, 9) for n in lengths]
            finish(target, generations)
            compared = 0
            for tree, _, told, hidden, grown in drafter.learned:
                by_path = {tuple(grown.path(node)): row for node, row in hidden.items()}
                for node in range(len(tree)):
                    row = by_path.get(tuple(tree.path(node)))
                    if row is not None:
                        compared += 1
                        own = Likeliest.of(stage_of(target).decoder.head(row[None]))
                        assert same_bits(own.shares[0], told.shares[node])  # to which every logit adds
                        assert same_bits(own.peaks, told.peaks[node : node + 1])
                        np.testing.assert_array_equal(own.tokens[0], told.tokens[node])
        assert compared > 20

    def test_a_node_brings_its_ancestors(self, target: Engine) -> None:
        """Asked about a leaf first, the model runs the whole path, each node of it once."""
        prompt = random_tokens(9, VOCAB)
        generation, tree = start(target, prompt)
        chain = [5, 6, 7]
        node = 0
        for token in chain:
            node = tree.add(node, token, 0.5)
        side = tree.add(1, 8, 0.5)
        drafter = on_targets_cache(target)
        drafter.begin([tree])
        drafter.expand([(tree, node)])
        assert [len(rows) for rows in drafter.rows] == [4]
        [guesses] = drafter.expand([(tree, 1)])
        assert len(drafter.rows) == 1
        drafter.expand([(tree, side), (tree, 2)])
        assert [len(rows) for rows in drafter.rows] == [4, 1]
        plain = commit(target, new_cache(target), [*tree.context, 5])
        assert guesses[0].token == int(plain[-1].argmax())
        assert generation.cache.length == len(tree.context) - 1, "guessing commits nothing"

    def test_guesses(self, target: Engine) -> None:
        _, tree = start(target, random_tokens(9, VOCAB))
        drafter = on_targets_cache(target)
        drafter.begin([tree])
        [guesses] = drafter.expand([(tree, 0)])
        logits = commit(target, new_cache(target), tree.context)[-1]
        assert [guess.token for guess in guesses] == np.argsort(-logits, kind="stable")[: len(guesses)].tolist()
        check(guesses)

    @pytest.mark.parametrize(
        "rule", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-30}, {"repetition_penalty": 1e9}]
    )
    def test_rules_that_leave_nearly_nothing(self, target: Engine, rule: dict[str, float]) -> None:
        """Scores that go to the ends of what floats can say are no worse than others."""
        params = SamplingParams(**{"temperature": 1.0, "seed": 1} | rule)  # type: ignore[arg-type]
        [(expected, _)] = generate(target, [[1, 2]], TOKENS, params)
        drafter = on_targets_cache(target)
        speculate(target, [drafter], 5)
        generation = target.add([1, 2], params, TOKENS)
        finish(target, [generation])
        assert generation.token_ids == expected
        assert generation.guesses.accepted


def node_of(tree: Tree, path: Sequence[int]) -> int:
    node: int | None = 0
    for token in path:
        node = tree.child(node or 0, token)
    assert node is not None
    return node


def start(target: Engine, prompt: list[int]) -> tuple[engine_sequence.Sequence, Tree]:
    """A sequence after its prompt's pass, and the root of its next tree."""
    generation = target.add(prompt, GREEDY, TOKENS)
    target.step()
    return generation, generation.root()


def check(guesses: Sequence[Guess]) -> None:
    """As the protocol has it."""
    assert 1 <= len(guesses) <= MOST_GUESSES
    assert len({guess.token for guess in guesses}) == len(guesses)
    scores = [guess.score for guess in guesses]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)
    assert all(type(guess.token) is int for guess in guesses)


def test_several_sequences_are_asked_about_in_one_run(target: Engine, other: Engine) -> None:
    """Their guesses are those that each would get alone."""
    roots = [start(target, random_tokens(n, VOCAB, seed=n))[1] for n in (3, 40, 9)]
    together, alone = with_cache(other), with_cache(other)
    together.begin(roots)
    alone.begin(roots)
    together.rows.clear()
    assert together.expand([(tree, 0) for tree in roots]) == [alone.expand([(tree, 0)])[0] for tree in roots]
    assert [len(rows) for rows in together.rows] == [3]
    assert all(isinstance(s, SequenceRows) for s in together.rows[0].sequences)
