from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assembled import GREEDY, generate, open_engine
from cases import CASES, DEMO, random_tokens
from checkpoints import random_tensors, tiny_config, write_checkpoint

from penstock import LLM, Output, SamplingParams
from penstock.engine import MAX_ROWS, Engine
from penstock.errors import ContextError, MemoryCeilingError, NumericsError, TokenizerError, UsageError
from penstock.models.llama import pass_order

VOCAB = 96


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with open_engine(path) as engine:
        yield engine


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    """A model without a tokenizer, none of whose weights may stay in memory."""
    with LLM.open(path) as llm:
        llm._max_resident = 0
        yield llm


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM.open("demo") as llm:
        yield llm


def passes_of(engine: Engine) -> list[int]:
    """The rows of each pass until all generations have ended."""
    rows = []
    while any(generation.finish_reason is None for generation in engine.active):
        rows.append(engine.step().rows)
    return rows


class TestPasses:
    def test_prompts_share_them(self, engine: Engine) -> None:
        """As many passes as the longest generation needs, however many there are."""
        for n_tokens in (3, 9, 5):
            engine.add(random_tokens(10 * n_tokens, VOCAB), SamplingParams(temperature=0, max_tokens=n_tokens))
        assert passes_of(engine) == [30 + 90 + 50, 3, 3, 2, 2, 1, 1, 1, 1]

    def test_a_prompt_takes_as_many_as_its_rows_need(self, path: Path) -> None:
        with open_engine(path, max_rows=7) as engine:
            engine.add(random_tokens(20, VOCAB), SamplingParams(temperature=0, max_tokens=2))
            assert passes_of(engine) == [7, 7, 6, 1]

    def test_single_tokens_go_first_and_prompts_take_the_rows_that_are_left(self, path: Path) -> None:
        with open_engine(path, max_rows=7) as engine:
            engine.add(random_tokens(4, VOCAB), SamplingParams(temperature=0, max_tokens=4))
            engine.add(random_tokens(12, VOCAB), SamplingParams(temperature=0, max_tokens=2))
            first, second = engine.active
            drawn = []
            while engine.active:
                engine.step()
                drawn.append((len(first.token_ids), len(second.token_ids)))
                engine.active = [g for g in engine.active if g.finish_reason is None]
        assert drawn == [(1, 0), (2, 0), (3, 1), (4, 2)]

    def test_more_sequences_than_rows_all_end(self, path: Path) -> None:
        prompts = [random_tokens(3, VOCAB, seed) for seed in range(5)]
        with open_engine(path, max_rows=2) as engine:
            tokens = [tokens for tokens, _ in generate(engine, prompts, 4)]
        with open_engine(path) as engine:
            assert tokens == [tokens for tokens, _ in generate(engine, prompts, 4)]

    @pytest.mark.parametrize("n_prompts", [1, 3])
    def test_each_reads_the_weights_once(self, engine: Engine, n_prompts: int) -> None:
        weights = engine.stage.model.weights
        matrices = {name for group in pass_order(engine.stage.model.config) for name in group}
        assert weights.pass_bytes == sum(weights.tensors[name].nbytes for name in matrices)
        for seed in range(n_prompts):
            engine.add(random_tokens(100, VOCAB, seed), SamplingParams(temperature=0, max_tokens=3))
        for _ in range(3):
            assert engine.step().bytes_read == weights.pass_bytes
        assert weights.totals.bytes_read == 3 * weights.pass_bytes

    @pytest.mark.parametrize("length", [MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1])
    def test_a_prompt_of_4096_tokens_costs_one(self, tmp_path: Path, length: int) -> None:
        config = tiny_config(num_hidden_layers=1, max_position_embeddings=5000, num_attention_heads=1, num_key_value_heads=1)
        write_checkpoint(tmp_path, config)
        with open_engine(tmp_path, context=5000) as engine:
            weights, head = engine.stage.model.weights, engine.stage.model.weights.tensors["lm_head.weight"].nbytes
            engine.add(random_tokens(length, VOCAB), SamplingParams(temperature=0, max_tokens=1))
            passes = passes_of(engine)
            assert passes == [length] if length <= MAX_ROWS else [MAX_ROWS, 1]
            # The head is read where a logit is wanted only.
            assert weights.totals.bytes_read == len(passes) * weights.pass_bytes - (len(passes) - 1) * head

    def test_resident_weights_are_not_read_again(self, path: Path) -> None:
        with open_engine(path, resident=1) as engine:
            engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=3))
            weights = engine.stage.model.weights
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
        assert stats.seconds == pytest.approx(sum(part.wait_seconds + part.compute_seconds for part in stats.parts))

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

    def test_the_eos_list_of_a_checkpoint(self, tmp_path: Path) -> None:
        """generation_config.json has the last word; without it config.json."""
        path = tmp_path / "model"
        write_checkpoint(path, tiny_config(eos_token_id=[]))
        with LLM.open(path) as llm:
            [output] = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=6))
        tokens = output.token_ids
        assert len(tokens) == 6
        for config, generation in ((tokens[2], None), ([95, tokens[3]], None), (tokens[1], [tokens[4], 95])):
            write_checkpoint(
                path,
                tiny_config(eos_token_id=config),
                generation_config=None if generation is None else {"eos_token_id": generation},
            )
            stops = [config] if isinstance(config, int) else config
            end = min(tokens.index(t) for t in (generation or stops) if t in tokens)
            with LLM.open(path) as llm:
                [output] = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=6))
            assert (output.token_ids, output.finish_reason) == (tokens[:end], "stop")


class TestRefusals:
    @pytest.mark.parametrize("wrong", [-1, VOCAB, 10**12])
    def test_ids_out_of_range(self, engine: Engine, wrong: int) -> None:
        with pytest.raises(UsageError) as caught:
            engine.add([1, wrong], GREEDY)
        assert caught.value.problem == f"Token id {wrong} is not in the model's vocabulary."
        assert caught.value.remedy == f"Ids go from 0 to {VOCAB - 1}."
        assert engine.active == []

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

    @pytest.mark.parametrize("context", [0, 1, 513, -5])
    def test_a_context_the_model_was_not_trained_for(self, path: Path, context: int) -> None:
        with pytest.raises(ContextError) as caught:
            LLM.open(path, context=context)
        assert f"context of {context} is out of range: the model was trained for 512" in caught.value.problem
        assert caught.value.remedy == "Give a number from 2 to 512."

    def test_one_bad_prompt_among_several_starts_none(self, llm: LLM) -> None:
        with pytest.raises(UsageError, match="Token id 96"):
            llm.generate([[1], [96]])
        assert llm._engine.active == []

    def test_a_bare_string(self, demo: LLM) -> None:
        with pytest.raises(UsageError) as caught:
            demo.generate("one prompt")
        assert caught.value.problem == "generate() takes a list of prompts."

    def test_text_without_a_tokenizer(self, llm: LLM) -> None:
        for call in (lambda: llm.generate(["text"]), lambda: llm.encode("x"), lambda: llm.chat([])):
            with pytest.raises(TokenizerError, match="no tokenizer, so it cannot take or give text"):
                call()

    def test_stop_strings_without_a_tokenizer(self, llm: LLM) -> None:
        with pytest.raises(TokenizerError, match="Stop strings need text"):
            llm.generate([[1, 2]], SamplingParams(stop="x"))
        assert llm._engine.active == [], "the refused generation takes part in all later passes"

    def test_a_ceiling_below_what_works(self, path: Path) -> None:
        with pytest.raises(MemoryCeilingError) as caught, LLM.open(path, memory="1MiB") as llm:
            llm.generate([[1]])
        assert "A memory ceiling of 1 MiB is too small" in caught.value.problem
        least = caught.value.remedy.split("The least that works is ")[1].split(":")[0]
        with LLM.open(path, memory=least) as llm:
            assert llm.generate([[1]], SamplingParams(max_tokens=2))

    def test_drafters(self, path: Path) -> None:
        for options in ({"draft": "demo"}, {"draft_nodes": 8}):
            with pytest.raises(UsageError, match="no drafters"):
                LLM.open(path, **options)
        LLM.open(path, draft="none", draft_nodes=0).close()

    def test_logits_that_are_no_numbers(self, tmp_path: Path) -> None:
        tensors = random_tensors(tiny_config())
        tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = 0x7FC0
        write_checkpoint(tmp_path, tensors=tensors)
        with LLM.open(tmp_path) as llm:
            with pytest.raises(NumericsError, match="logits for position 3 are not finite"):
                llm.generate([[1, 2, 3]])
            assert llm._engine.active == []

    @pytest.mark.parametrize("tokens", [[VOCAB], [-1], [1, 2**40]])
    def test_forward_refuses_ids_out_of_range(self, llm: LLM, tokens: list[int]) -> None:
        """One level down it would read bytes that are no embedding."""
        with pytest.raises(UsageError, match="not in the model's vocabulary"):
            llm.model.forward(tokens, 0, llm.new_cache())

    def test_forward_refuses_positions_that_the_cache_does_not_reach(self, llm: LLM) -> None:
        """It would attend to keys that nobody wrote."""
        cache = llm.new_cache()
        llm.model.forward([1, 2, 3], 0, cache)
        with pytest.raises(UsageError, match="position"):
            llm.model.forward([4], 5, cache)

    def test_logits_of_as_many_tokens_as_the_context_has_positions(self, path: Path) -> None:
        """No answer follows, so nothing is missing."""
        with LLM.open(path, context=16) as llm:
            assert llm.logits([1] * 16).shape == (16, VOCAB)
            with pytest.raises(ContextError):
                llm.logits([1] * 17)


class TestInterface:
    PROMPT = "def add(a, b):\n    return"

    def complete(self, demo: LLM, **params: Any) -> Output:
        [output] = demo.generate([self.PROMPT], SamplingParams(temperature=0, **params))
        return output

    def test_a_stream_and_a_list_say_the_same(self, demo: LLM) -> None:
        params = SamplingParams(temperature=0.9, seed=3, max_tokens=12)
        [output] = demo.generate([self.PROMPT], params)
        pieces = list(demo.stream(self.PROMPT, params))
        assert "".join(piece.text for piece in pieces) == output.text
        assert [token for piece in pieces for token in piece.token_ids] == output.token_ids
        assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]

    def test_stats(self, demo: LLM) -> None:
        output = self.complete(demo, max_tokens=5)
        stats = output.stats
        assert (stats.passes, stats.tokens, stats.tokens_per_pass) == (5, 5, 1)
        assert stats.prompt_tokens == len(demo.encode(self.PROMPT))
        assert 0 < stats.first_token_seconds <= stats.seconds
        assert stats.bytes_read == sum(p.bytes_read for p in stats.log)

    def test_a_stop_string_ends_the_text_before_it(self, demo: LLM) -> None:
        free = self.complete(demo, max_tokens=16)
        for stop in (free.text[5:8], free.text[3]):
            cut = self.complete(demo, max_tokens=16, stop=["not there", stop])
            assert cut.text == free.text[: free.text.index(stop)]
            assert cut.finish_reason == "stop"
            assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
            assert cut.stats.passes == len(cut.token_ids)

    def test_half_a_stop_string_at_the_end_is_text(self, demo: LLM) -> None:
        free = self.complete(demo, max_tokens=8)
        output = self.complete(demo, max_tokens=8, stop=free.text[-2:] + "never")
        assert (output.text, output.finish_reason) == (free.text, "length")

    def test_the_seed_of_an_unseeded_draw_repeats_it(self, demo: LLM) -> None:
        [first, second] = demo.generate([self.PROMPT] * 2, SamplingParams(temperature=2, max_tokens=12))
        assert first.stats.seed != second.stats.seed
        for output in (first, second):
            again = SamplingParams(temperature=2, max_tokens=12, seed=output.stats.seed)
            assert demo.generate([self.PROMPT], again)[0].token_ids == output.token_ids

    def test_no_prompts_no_outputs(self, demo: LLM) -> None:
        assert demo.generate([]) == []

    def test_equal_prompts_of_one_call_share_passes_not_tokens(self, demo: LLM) -> None:
        outputs = demo.generate([self.PROMPT] * 3, SamplingParams(temperature=0, max_tokens=4))
        assert {tuple(output.token_ids) for output in outputs} == {tuple(outputs[0].token_ids)}
        assert [output.stats.passes for output in outputs] == [4, 4, 4]

    def test_closing_a_stream_ends_its_generation(self, demo: LLM) -> None:
        stream = demo.stream(self.PROMPT, SamplingParams(max_tokens=50))
        next(stream)
        assert len(demo._engine.active) == 1
        stream.close()
        assert demo._engine.active == []

    def test_streams_may_take_turns(self, demo: LLM) -> None:
        """One thread, two streams: each yields what it yields alone."""
        prompts, params = [self.PROMPT, "class Stack:"], SamplingParams(temperature=0, max_tokens=6)
        expected = [output.token_ids for output in demo.generate(prompts, params)]
        streams = [demo.stream(prompt, params) for prompt in prompts]
        drawn: list[list[int]] = [[], []]
        for _ in range(6):
            for stream, tokens in zip(streams, drawn, strict=True):
                tokens += [token for piece in [next(stream, None)] if piece for token in piece.token_ids]
        assert drawn == expected

    def test_a_list_beside_an_open_stream(self, demo: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=6)
        [expected] = demo.generate(["class Stack:"], params)
        stream = demo.stream("class Stack:", params)
        tokens = list(next(stream).token_ids)
        assert len(demo.generate([self.PROMPT], SamplingParams(temperature=0, max_tokens=12))[0].token_ids) == 12
        tokens += [token for piece in stream for token in piece.token_ids]
        assert tokens == expected.token_ids

    def test_logits_and_forward_are_as_the_textbook_has_them(self, llm: LLM) -> None:
        tokens = random_tokens(20, VOCAB)
        logits = llm.logits(tokens)
        assert logits.shape == (20, VOCAB)
        assert logits.dtype == np.float32
        [output] = llm.generate([tokens], SamplingParams(temperature=0, max_tokens=1))
        assert output.token_ids == [int(logits[-1].argmax())]
        cache = llm.new_cache()
        llm.model.forward(tokens, 0, cache)
        assert cache.length == 20

    def test_forward_goes_back(self, llm: LLM) -> None:
        """A position before the cache's end drops what follows it."""
        cache = llm.new_cache()
        llm.model.forward([1, 2, 3, 4], 0, cache)
        replaced = llm.model.forward([9], 2, cache)
        assert cache.length == 3
        assert (replaced == llm.logits([1, 2, 9])[-1]).all()

    def test_tokens_outside_the_tokenizer_decode_to_nothing(self, tmp_path: Path) -> None:
        """Many checkpoints have more rows in their matrices than tokens in their tokenizer."""
        from tokenizers import Tokenizer as Backend

        path = tmp_path / "model"
        entries = Backend.from_file(str(DEMO / "tokenizer.json")).get_vocab_size()
        write_checkpoint(path, tiny_config(vocab_size=entries + 64))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / name, path)
        with LLM.open(path) as llm:
            [output] = llm.generate([[entries + 5, entries + 63]], SamplingParams(temperature=0, max_tokens=8))
        assert len(output.token_ids) == 8
