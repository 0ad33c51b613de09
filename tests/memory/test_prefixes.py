"""Keys and values in common: found, shared within a pass, kept after the end, and never seen in a logit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.assembled import GREEDY, Recorder, limited, open_engine
from helpers.cases import CASES, random_tokens
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock import SamplingParams
from penstock.compute.kernels import F32
from penstock.engine.engine import Engine
from penstock.engine.sequence import Sequence
from penstock.errors import ReadError
from penstock.memory.memory import Memory
from penstock.memory.prefixes import common_blocks
from penstock.models.kv_cache import BLOCK_SLOTS

VOCAB = 96
SYSTEM = random_tokens(3 * BLOCK_SLOTS + 5, VOCAB, seed=7)
QUESTIONS = [random_tokens(n, VOCAB, seed=n) for n in (4, 9, 40)]
TOKENS = 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with open_engine(path, threads=2) as engine:
        yield engine


def add(engine: Engine, prompt: list[int], tokens: int = TOKENS, **options: object) -> tuple[Sequence, Recorder]:
    sequence = engine.add(prompt, GREEDY, tokens, **options)  # type: ignore[arg-type]
    recorder = Recorder(sequence.sampler)
    sequence.sampler = recorder  # type: ignore[assignment]
    return sequence, recorder


def finish(engine: Engine) -> list[int]:
    """The rows of each pass."""
    rows = []
    while engine.busy:
        rows.append(engine.step().rows)
    return rows


def alone(path: Path, prompt: list[int], tokens: int = TOKENS) -> tuple[list[int], F32]:
    with open_engine(path) as engine:
        sequence, recorder = add(engine, prompt, tokens)
        finish(engine)
        return sequence.token_ids, np.array(recorder.logits)


def require_as_alone(path: Path, sequence: Sequence, recorder: Recorder) -> None:
    tokens, logits = alone(path, sequence.prompt, sequence.max_tokens)
    assert sequence.token_ids == tokens
    assert same_bits(np.array(recorder.logits), logits)


@given(
    same=st.integers(0, 4 * BLOCK_SLOTS), more=st.tuples(st.integers(0, 40), st.integers(0, 40)), seed=st.integers(0, 9)
)
def test_common_blocks(same: int, more: tuple[int, int], seed: int) -> None:
    """Whole ones, and never the last token of what is asked: its logits are wanted."""
    first = random_tokens(same, VOCAB, seed)
    a, b = first + [1] * more[0], first + [2] * more[1]
    expected = next(i for i in range(len(a) + 1) if a[: i + 1] != b[: i + 1] or i == len(a))
    assert common_blocks(a, b) == max(0, min(expected, len(b) - 1)) // BLOCK_SLOTS


class TestWithinAPass:
    def test_prompts_that_begin_alike_compute_it_once(self, path: Path, engine: Engine) -> None:
        asked = [add(engine, SYSTEM + question) for question in QUESTIONS]
        rows = engine.step().rows
        assert rows == sum(len(SYSTEM) + len(q) for q in QUESTIONS) - 2 * 3 * BLOCK_SLOTS
        caches = [sequence.cache for sequence, _ in asked]
        assert len({block for cache in caches for block in cache.block_names[:3]}) == 3
        finish(engine)
        for sequence, recorder in asked:
            require_as_alone(path, sequence, recorder)

    def test_equal_prompts(self, path: Path, engine: Engine) -> None:
        asked = [add(engine, SYSTEM) for _ in range(3)]
        assert engine.step().rows == len(SYSTEM) + 2 * (len(SYSTEM) - 3 * BLOCK_SLOTS)
        finish(engine)
        for sequence, recorder in asked:
            require_as_alone(path, sequence, recorder)

    @pytest.mark.parametrize("max_rows", quick([20], [1, 20, BLOCK_SLOTS + 1, 100]))
    def test_in_passes_of_few_rows(self, path: Path, max_rows: int) -> None:
        with open_engine(path, max_rows=max_rows) as engine:
            asked = [add(engine, SYSTEM + question) for question in QUESTIONS]
            rows = finish(engine)
        for sequence, recorder in asked:
            require_as_alone(path, sequence, recorder)
        assert max(rows) <= max_rows
        if max_rows > 1:  # else the first one takes every pass until it has ended
            assert sum(rows) <= sum(len(SYSTEM) + len(q) + TOKENS for q in QUESTIONS) - 2 * BLOCK_SLOTS * 3

    def test_one_that_joins_later(self, path: Path, engine: Engine) -> None:
        first = add(engine, SYSTEM + QUESTIONS[0], 50)
        for _ in range(40):
            engine.step()
        answer = first[0].tokens[: len(SYSTEM) + 20]
        second = add(engine, answer + QUESTIONS[1])
        assert engine.step().rows == 1 + len(second[0].prompt) - len(answer) // BLOCK_SLOTS * BLOCK_SLOTS
        finish(engine)
        for sequence, recorder in (first, second):
            require_as_alone(path, sequence, recorder)

    def test_one_that_leaves_first(self, path: Path, engine: Engine) -> None:
        first, second = (add(engine, SYSTEM + question) for question in QUESTIONS[:2])
        engine.step()
        engine.cancel(first[0])
        finish(engine)
        require_as_alone(path, *second)

    def test_a_read_that_fails_in_the_pass_that_was_to_compute_it(
        self, path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = [add(engine, SYSTEM + question) for question in QUESTIONS]
        run_pass = engine.chain.run_pass

        def fail(rows: object, need: object) -> None:
            monkeypatch.setattr(engine.chain, "run_pass", run_pass)
            raise ReadError("The disk is gone.")

        monkeypatch.setattr(engine.chain, "run_pass", fail)
        with pytest.raises(ReadError):
            engine.step()
        engine.cancel(asked[0][0])  # the shortest, which the others had begun with
        finish(engine)
        for sequence, recorder in asked[1:]:
            require_as_alone(path, sequence, recorder)


class TestKept:
    """What sequences that have ended leave for others."""

    def test_a_follow_up_computes_what_is_new(self, path: Path) -> None:
        with open_engine(path) as plain, limited(plain, blocks=40) as engine:
            first, _ = add(engine, SYSTEM)
            finish(engine)
            engine.cancel(first)
            said = first.tokens
            second = add(engine, said + QUESTIONS[0])
            kept = (len(said) - 1) // BLOCK_SLOTS * BLOCK_SLOTS
            assert engine.step().rows == len(said) + len(QUESTIONS[0]) - kept
            finish(engine)
            require_as_alone(path, *second)

    def test_the_least_recently_used_goes_first(self, path: Path) -> None:
        with open_engine(path) as plain, limited(plain, blocks=40, kept_blocks=4) as engine:
            prompts = [random_tokens(2 * BLOCK_SLOTS + 1, VOCAB, seed) for seed in range(3)]

            def rows(index: int) -> int:
                sequence, _ = add(engine, prompts[index], 1)
                [count] = finish(engine)
                engine.cancel(sequence)
                return count

            new, kept = 2 * BLOCK_SLOTS + 1, 1
            assert [rows(i) for i in (0, 1, 0, 2, 0, 1)] == [new, new, kept, new, kept, new]

    def test_they_give_way_to_sequences(self, path: Path) -> None:
        with open_engine(path) as plain, limited(plain, blocks=8, kept_blocks=8) as engine:
            first, _ = add(engine, random_tokens(4 * BLOCK_SLOTS, VOCAB, 1), 2)
            finish(engine)
            engine.cancel(first)
            assert len(engine.memory.caches.kept.block_names()) == 4
            second = add(engine, random_tokens(6 * BLOCK_SLOTS, VOCAB, 2), 2)
            assert engine.scheduler.active == [second[0]]
            finish(engine)
            assert len(engine.memory.caches.kept.block_names()) == 0
            require_as_alone(path, *second)

    def test_they_are_given_up_where_other_programs_need_memory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_engine(path) as plain, limited(plain, blocks=40) as engine:
            first, _ = add(engine, SYSTEM, 2)
            finish(engine)
            engine.cancel(first)
            add(engine, [1, 2, 3], 2)
            engine.step()
            assert len(engine.memory.caches.kept.block_names()) > 0
            monkeypatch.setattr(Memory, "pressed", True)
            engine.step()
            assert len(engine.memory.caches.kept.block_names()) == 0

    def test_a_longer_one_takes_the_place_of_what_it_began_with(self, path: Path) -> None:
        with open_engine(path) as plain, limited(plain, blocks=40) as engine:
            for prompt in (SYSTEM, SYSTEM + QUESTIONS[2], SYSTEM):
                sequence, _ = add(engine, prompt, 1)
                finish(engine)
                engine.cancel(sequence)
            assert len(list(engine.memory.caches.kept)) == 1
            kept = engine.memory.caches.kept.block_names()
            assert len(kept) == (len(SYSTEM) + len(QUESTIONS[2])) // BLOCK_SLOTS


class TestWaiting:
    def test_those_that_do_not_fit_wait_in_their_order(self, path: Path) -> None:
        prompts = [random_tokens(2 * BLOCK_SLOTS, VOCAB, seed) for seed in range(5)]
        with open_engine(path) as plain, limited(plain, blocks=6, kept_blocks=0) as engine:
            asked = [add(engine, prompt, 3 + i) for i, prompt in enumerate(prompts)]
            sequences = [sequence for sequence, _ in asked]
            assert engine.scheduler.active == sequences[:2]
            assert list(engine.scheduler.waiting) == sequences[2:]
            ended = []
            while engine.busy:
                engine.step()
                ended += [g for g in sequences if g.finish_reason and g not in ended]
                assert len(engine.scheduler.active) <= 2
            assert ended == sequences
            for sequence, recorder in asked:
                require_as_alone(path, sequence, recorder)

    def test_what_they_share_counts_once(self, path: Path) -> None:
        prompts = [SYSTEM[: 3 * BLOCK_SLOTS] + random_tokens(9, VOCAB, seed) for seed in range(5)]
        with open_engine(path) as plain, limited(plain, blocks=8, kept_blocks=0) as engine:
            asked = [add(engine, prompt) for prompt in prompts]
            assert len(engine.scheduler.active) == 5
            finish(engine)
            for sequence, recorder in asked:
                require_as_alone(path, sequence, recorder)

    @pytest.mark.parametrize("steps", [0, 1])
    def test_where_the_one_to_share_with_leaves(self, path: Path, steps: int) -> None:
        """Before or after it computed anything: nobody comes to need more than there is."""
        prompts = [SYSTEM[: 3 * BLOCK_SLOTS] + random_tokens(9 + seed, VOCAB, seed) for seed in range(5)]
        with open_engine(path) as plain, limited(plain, blocks=8, kept_blocks=0) as engine:
            asked = [add(engine, prompt) for prompt in prompts]
            for _ in range(steps):
                engine.step()
            engine.cancel(asked[0][0])
            other = add(engine, random_tokens(2 * BLOCK_SLOTS, VOCAB, 99), 3)
            finish(engine)
            for sequence, recorder in [*asked[1:], other]:
                require_as_alone(path, sequence, recorder)

    def test_one_that_is_cancelled_while_it_waits(self, path: Path) -> None:
        with open_engine(path) as plain, limited(plain, blocks=3, kept_blocks=0) as engine:
            first, second, third = (add(engine, random_tokens(40, VOCAB, seed), 2)[0] for seed in range(3))
            engine.cancel(second)
            finish(engine)
            assert (len(first.token_ids), len(second.token_ids), len(third.token_ids)) == (2, 0, 2)


class TestDrawn:
    """A sequence of which an earlier run drew a part."""

    @pytest.mark.parametrize("count", [0, 1, 7, 11])
    def test_it_goes_on_as_it_would_have(self, path: Path, engine: Engine, count: int) -> None:
        params = SamplingParams(temperature=1, seed=3, repetition_penalty=1.2, max_tokens=12)
        whole = engine.add(SYSTEM, params, choice=2)
        finish(engine)
        rest = engine.add(SYSTEM, params, choice=2, drawn=whole.token_ids[:count])
        rows = finish(engine)
        assert rest.token_ids == whole.token_ids
        assert len(rows) == 12 - count

    def test_one_that_had_ended(self, engine: Engine) -> None:
        sequence = engine.add([1, 2], SamplingParams(temperature=0, max_tokens=3), drawn=[4, 5, 6])
        assert (sequence.finish_reason, sequence.token_ids) == ("length", [4, 5, 6])
        assert not engine.busy

    def test_choices_differ(self, engine: Engine) -> None:
        params = SamplingParams(temperature=1, seed=3, max_tokens=12)
        drawn = [engine.add([1, 2], params, choice=choice) for choice in (0, 1, 0)]
        finish(engine)
        assert drawn[0].token_ids == drawn[2].token_ids != drawn[1].token_ids
