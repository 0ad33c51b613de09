from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.assembled import GREEDY, generate, open_engine, stage_of
from helpers.cases import CASES, random_tokens
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock import SamplingParams
from penstock.engine.engine import Engine
from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import ContextError, UsageError

VOCAB = 96


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with open_engine(path) as engine:
        yield engine


def passes_of(engine: Engine) -> list[int]:
    """The rows of each pass until all generations have ended."""
    rows = []
    while any(generation.finish_reason is None for generation in engine.scheduler.active):
        rows.append(engine.step().rows)
    return rows


class TestPasses:
    def test_prompts_share_them(self, engine: Engine) -> None:
        """As many passes as the longest generation needs, however many there are."""
        for n_tokens in (3, 9, 5):
            prompt = random_tokens(10 * n_tokens, VOCAB, seed=n_tokens)
            engine.add(prompt, SamplingParams(temperature=0, max_tokens=n_tokens))
        assert passes_of(engine) == [30 + 90 + 50, 3, 3, 2, 2, 1, 1, 1, 1]

    def test_a_prompt_takes_as_many_as_its_rows_need(self, path: Path) -> None:
        with open_engine(path, max_rows=7) as engine:
            engine.add(random_tokens(20, VOCAB), SamplingParams(temperature=0, max_tokens=2))
            assert passes_of(engine) == [7, 7, 6, 1]

    def test_single_tokens_go_first_and_prompts_take_the_rows_that_are_left(self, path: Path) -> None:
        with open_engine(path, max_rows=7) as engine:
            engine.add(random_tokens(4, VOCAB), SamplingParams(temperature=0, max_tokens=4))
            engine.add(random_tokens(12, VOCAB), SamplingParams(temperature=0, max_tokens=2))
            first, second = engine.scheduler.active
            drawn = []
            while engine.scheduler.active:
                engine.step()
                drawn.append((len(first.token_ids), len(second.token_ids)))
                engine.scheduler.active = [g for g in engine.scheduler.active if g.finish_reason is None]
        assert drawn == [(1, 0), (2, 0), (3, 1), (4, 2)]

    def test_more_sequences_than_rows_all_end(self, path: Path) -> None:
        prompts = [random_tokens(3, VOCAB, seed) for seed in range(5)]
        with open_engine(path, max_rows=2) as engine:
            tokens = [tokens for tokens, _ in generate(engine, prompts, 4)]
        with open_engine(path) as engine:
            assert tokens == [tokens for tokens, _ in generate(engine, prompts, 4)]

    @pytest.mark.parametrize("n_prompts", [1, 3])
    def test_each_reads_the_weights_once(self, engine: Engine, n_prompts: int) -> None:
        weights = stage_of(engine).weights
        matrices = set(stage_of(engine).decoder.architecture.pass_order)
        assert weights.pass_bytes == sum(weights.tensors[name].nbytes for name in matrices)
        for seed in range(n_prompts):
            engine.add(random_tokens(100, VOCAB, seed), SamplingParams(temperature=0, max_tokens=3))
        for _ in range(3):
            assert engine.step().bytes_read == weights.pass_bytes
        assert weights.totals.bytes_read == 3 * weights.pass_bytes

    @pytest.mark.parametrize("length", [MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1])
    def test_a_prompt_of_4096_tokens_costs_one(self, tmp_path: Path, length: int) -> None:
        one = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
        write_checkpoint(tmp_path, tiny_config(max_position_embeddings=5000, **one))
        with open_engine(tmp_path, context=5000) as engine:
            weights, head = stage_of(engine).weights, stage_of(engine).weights.tensors["lm_head.weight"].nbytes
            engine.add(random_tokens(length, VOCAB), SamplingParams(temperature=0, max_tokens=1))
            passes = passes_of(engine)
            assert passes == ([length] if length <= MAX_ROWS else [MAX_ROWS, 1])
            # The head is read where a logit is wanted only.
            assert weights.totals.bytes_read == len(passes) * weights.pass_bytes - (len(passes) - 1) * head

    def test_resident_weights_are_not_read_again(self, path: Path) -> None:
        with open_engine(path, resident=1) as engine:
            engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=3))
            weights = stage_of(engine).weights
            assert [engine.step().bytes_read for _ in range(3)] == [weights.pass_bytes, 0, 0]
            assert weights.resident_bytes == weights.pass_bytes

    def test_parts_add_up(self, path: Path) -> None:
        told: list[tuple[int, float, float, float]] = []
        with open_engine(path, on_layer=lambda *layer: told.append(layer)) as engine:
            engine.add([1, 2], SamplingParams(temperature=0, max_tokens=1))
            stats = engine.step()
        assert [part.name for part in stats.parts] == ["embedding", "layer 0", "layer 1", "head"]
        assert told == [
            (index, part.read_seconds, part.wait_seconds, part.compute_seconds)
            for index, part in enumerate(stats.parts[1:-1])
        ]
        assert stats.parts[1].bytes_read == stats.parts[2].bytes_read > 0
        assert stats.seconds >= sum(part.wait_seconds + part.compute_seconds for part in stats.parts)

    def test_a_generation_may_join_those_that_run(self, engine: Engine) -> None:
        prompts = [random_tokens(12, VOCAB, seed) for seed in (1, 2)]
        expected = [tokens for tokens, _ in generate(engine, prompts, 6)]
        first = engine.add(prompts[0], SamplingParams(temperature=0, max_tokens=6))
        engine.step()
        engine.step()
        second = engine.add(prompts[1], SamplingParams(temperature=0, max_tokens=6))
        passes_of(engine)
        assert [first.token_ids, second.token_ids] == expected

    def test_a_cancelled_one_leaves(self, engine: Engine) -> None:
        kept, cancelled = (engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=5)) for _ in range(2))
        engine.step()
        engine.cancel(cancelled)
        assert passes_of(engine) == [1] * 4
        assert (cancelled.finish_reason, len(cancelled.token_ids)) == ("stop", 1)
        assert (kept.finish_reason, len(kept.token_ids)) == ("length", 5)
        engine.cancel(kept)
        assert kept.finish_reason == "length"


class TestEnds:
    """When a generation ends, and why."""

    def greedy(self, path: Path, n_tokens: int = 8, **options: Any) -> list[int]:
        with open_engine(path, **options) as engine:
            [(tokens, _)] = generate(engine, [[1, 2, 3]], n_tokens)
        return tokens

    def test_max_tokens(self, engine: Engine) -> None:
        generation = engine.add([1], SamplingParams(temperature=0, max_tokens=4))
        passes_of(engine)
        assert (len(generation.token_ids), generation.finish_reason) == (4, "length")

    @pytest.mark.parametrize("several", [False, True])
    def test_an_end_of_sequence_token(self, path: Path, several: bool) -> None:
        tokens = self.greedy(path)
        eos = tokens[5]
        first = tokens.index(eos)
        with open_engine(path, eos=(90, eos, 91) if several else (eos,)) as engine:
            generation = engine.add([1, 2, 3], SamplingParams(temperature=0))
            passes = passes_of(engine)
        assert generation.token_ids == tokens[:first]
        assert generation.finish_reason == "stop"
        assert len(passes) == first + 1

    def test_end_of_sequence_tokens_ignored(self, path: Path) -> None:
        tokens = self.greedy(path)
        with open_engine(path, eos=tokens) as engine:
            generation = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
            passes_of(engine)
        assert (generation.token_ids, generation.finish_reason) == (tokens, "length")

    def test_an_end_of_sequence_token_in_the_prompt_ends_nothing(self, path: Path) -> None:
        tokens = self.greedy(path)
        with open_engine(path, eos=(2,)) as engine:
            generation = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=8))
            passes_of(engine)
        assert generation.token_ids == tokens

    @pytest.mark.parametrize("max_tokens", [None, 1000])
    def test_the_end_of_the_context(self, path: Path, max_tokens: int | None) -> None:
        with open_engine(path, context=16) as engine:
            generation = engine.add([1] * 10, SamplingParams(temperature=0, max_tokens=max_tokens))
            passes_of(engine)
        assert (len(generation.token_ids), generation.finish_reason) == (6, "length")


class TestRefusals:
    @pytest.mark.parametrize("wrong", [-1, VOCAB, 10**12])
    def test_ids_out_of_range(self, engine: Engine, wrong: int) -> None:
        with pytest.raises(UsageError) as caught:
            engine.add([1, wrong], GREEDY)
        assert caught.value.problem == f"Token id {wrong} is not in the model's vocabulary."
        assert caught.value.remedy == f"Ids go from 0 to {VOCAB - 1}."
        assert engine.scheduler.active == []

    def test_an_empty_prompt(self, engine: Engine) -> None:
        with pytest.raises(UsageError) as caught:
            engine.add([], GREEDY)
        assert caught.value.problem == "The prompt has no tokens."
        assert caught.value.remedy == "Give some text, or at least one token id."

    def test_a_prompt_longer_than_the_context(self, path: Path) -> None:
        with open_engine(path, context=16) as engine:
            engine.add([1] * 15, GREEDY)
            for length in (16, 40):
                with pytest.raises(ContextError) as caught:
                    engine.add([1] * length, GREEDY)
                assert caught.value.problem == (
                    f"The prompt has {length} tokens; a context of 16 has no room for it and an answer."
                )
                assert "--context" in caught.value.remedy
