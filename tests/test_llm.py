from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from helpers.cases import CASES, DEMO, random_tokens
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from helpers.drafting import write_pair
from helpers.rooms import keep_at_most, set_budget
from penstock import LLM, Output, SamplingParams
from penstock.errors import ContextError, MemoryCeilingError, NumericsError, TokenizerError, UsageError
from penstock.system import machine

VOCAB = 96


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    """A model without a tokenizer, none of whose weights may stay in memory."""
    with LLM.open(path) as llm:
        keep_at_most(llm, 0)
        yield llm


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM.open("demo") as llm:
        yield llm


class TestRefusals:
    @pytest.mark.parametrize("context", [0, 1, 513, -5])
    def test_a_context_the_model_was_not_trained_for(self, path: Path, context: int) -> None:
        with pytest.raises(ContextError) as caught:
            LLM.open(path, context=context)
        assert f"context of {context} is out of range: the model was trained for 512" in caught.value.problem
        assert caught.value.remedy == "Give a number from 2 to 512."

    def test_one_bad_prompt_among_several_starts_none(self, llm: LLM) -> None:
        with pytest.raises(UsageError, match="Token id 96"):
            llm.generate([[1], [96]])
        assert llm.engine.scheduler.active == []

    def test_a_bare_string(self, demo: LLM) -> None:
        with pytest.raises(UsageError) as caught:
            demo.generate("one prompt")
        assert caught.value.problem == "generate() takes a list of prompts."

    def test_messages_where_text_goes_on(self, demo: LLM) -> None:
        messages = [{"role": "user", "content": "Why?"}]
        for call in (
            lambda: next(demo.stream(messages)),  # type: ignore[arg-type]
            lambda: demo.generate(messages),  # type: ignore[arg-type]
            lambda: demo.generate([messages]),  # type: ignore[list-item]
        ):
            with pytest.raises(UsageError, match=r"These are messages.*\nGive them to chat_stream\(messages\)"):
                call()

    def test_text_without_a_tokenizer(self, llm: LLM) -> None:
        for call in (lambda: llm.generate(["text"]), lambda: llm.encode("x"), lambda: llm.chat([])):
            with pytest.raises(TokenizerError, match="no tokenizer, so it cannot take or give text"):
                call()

    def test_stop_strings_without_a_tokenizer(self, llm: LLM) -> None:
        with pytest.raises(TokenizerError, match="Stop strings need text"):
            llm.generate([[1, 2]], SamplingParams(stop="x"))
        assert llm.engine.scheduler.active == [], "the refused generation takes part in all later passes"

    def test_a_ceiling_below_what_works(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = machine.footprint()  # which other tests' leftovers may change from one opening to the next
        monkeypatch.setattr(machine, "footprint", lambda: now)
        with pytest.raises(MemoryCeilingError) as caught, LLM.open(path, memory="1MiB") as llm:
            llm.generate([[1]])
        assert "A memory ceiling of 1 MiB is too small" in caught.value.problem
        least = caught.value.remedy.split("The least that works is ")[1].split(":")[0]
        with LLM.open(path, memory=least) as llm:
            assert llm.generate([[1]], SamplingParams(max_tokens=2))

    def test_drafters(self, path: Path) -> None:
        with pytest.raises(UsageError, match="has a vocabulary of 4096 tokens, and the model has 96"):
            LLM.open(path, draft="demo")
        for nodes in (-1, 1.5, True, "8", 5000):
            with pytest.raises(UsageError, match="draft_nodes="):
                LLM.open(path, draft_nodes=nodes)  # type: ignore[arg-type]
        for options in ({"draft": "none"}, {"draft_nodes": 0}):
            with LLM.open(path, **options) as llm:
                assert llm.engine.speculator.drafters == []
                assert llm.memory.budget.draft == 0

    def test_logits_that_are_no_numbers(self, tmp_path: Path) -> None:
        tensors = random_tensors(tiny_config())
        tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = 0x7FC0
        write_checkpoint(tmp_path, tensors=tensors)
        with LLM.open(tmp_path) as llm:
            with pytest.raises(NumericsError, match="logits for position 3 are not finite"):
                llm.generate([[1, 2, 3]])
            assert llm.engine.scheduler.active == []

    def test_a_sequence_that_fails_leaves_the_others_alone(self, llm: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        [expected] = llm.generate([[4, 5]], params)
        failing, sound = llm.stream([1, 2], params), llm.stream([4, 5], params)
        next(failing)
        tokens = list(next(sound).token_ids)

        class Failing:
            takes_likeliest = False

            def __call__(self, *arguments: Any) -> int:
                raise NumericsError("no number", "none")

        llm.engine.scheduler.active[0].sampler = Failing()  # type: ignore[assignment]
        tokens += [token for piece in sound for token in piece.token_ids]
        assert tokens == expected.token_ids
        with pytest.raises(NumericsError, match="no number"):
            list(failing)

    @pytest.mark.parametrize("prompts", [[1, 2], [["a"]], [[1.7]], [[1, None]]])
    def test_what_is_no_prompt(self, llm: LLM, prompts: Any) -> None:
        with pytest.raises(UsageError):
            llm.generate(prompts)
        assert llm.engine.scheduler.active == []

    @pytest.mark.parametrize("options", [{"threads": 1.5}, {"threads": 0}, {"threads": 2000}, {"context": 20.5}])
    def test_options_that_are_no_whole_numbers(self, path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            LLM.open(path, **options)

    @pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
    def test_a_refused_opening_leaves_nothing_open(self, path: Path) -> None:
        before = len([*Path("/proc/self/fd").iterdir()])
        for _ in range(3):
            with pytest.raises(MemoryCeilingError):
                LLM.open(path, memory="1MiB")
        assert len([*Path("/proc/self/fd").iterdir()]) == before

    def test_a_closed_model_is_freed_at_once(self, path: Path) -> None:
        llm = LLM.open(path)
        llm.logits([1, 2])
        alive = weakref.ref(llm.weights)
        llm.close()
        gc.disable()
        try:
            del llm
            assert alive() is None, "it waits for the garbage collector"
        finally:
            gc.enable()

    def test_a_closed_model_that_guessed_is_freed_at_once(self, tmp_path: Path) -> None:
        raw, packed = write_pair(tmp_path)
        llm = LLM.open(packed, draft=str(raw))
        llm.generate([[1, 2]], SamplingParams(max_tokens=6, ignore_eos=True))
        alive = [weakref.ref(each) for each in (llm.weights, llm.model.planes, llm.engine, llm.chain.stages[0])]
        llm.close()
        gc.disable()
        try:
            del llm
            assert [ref() for ref in alive] == [None] * 4, "it waits for the garbage collector"
        finally:
            gc.enable()

    def test_logits_that_do_not_fit_are_refused(self, path: Path) -> None:
        with LLM.open(path, memory="16GiB") as llm:
            plan = llm.plan_pass(rows=32, slots=512)
            spare = 120 * 4 * VOCAB  # logits of fewer rows than wanted
            process = plan.ceiling - plan.ring - plan.allowance - plan.kv - plan.activations - spare
            set_budget(llm, process=process, scratch=0)
            with pytest.raises(MemoryCeilingError, match="The least that works"):
                llm.logits([1] * 512)
            assert llm.logits([1] * 60).shape == (60, VOCAB)

    def test_logits_come_in_chunks_where_rows_do_not_fit_at_once(self, path: Path) -> None:
        tokens = random_tokens(300, VOCAB)
        with LLM.open(path, memory="16GiB") as llm:
            expected = llm.logits(tokens)
            plan = llm.plan_pass(rows=100, logit_rows=400, slots=300)
            process = plan.ceiling - plan.ring - plan.allowance - plan.kv - plan.activations
            set_budget(llm, process=process, scratch=0)
            ran: list[int] = []
            llm.events.listeners.append(lambda event: ran.append(event.name) if event.kind == "pass" else None)
            assert llm.logits(tokens).tobytes() == expected.tobytes()
            assert len(ran) > 1

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

    def test_a_model_that_was_closed(self, path: Path) -> None:
        llm = LLM.open(path)
        llm.close()
        for call in (lambda: llm.logits([1]), lambda: llm.generate([[1]])):
            with pytest.raises(UsageError, match="has been closed"):
                call()
        assert llm.engine.scheduler.active == []


class TestMoreThanFits:
    """Prompts whose keys and values have no room beside each other: some wait, and all bring what each brings alone."""

    PROMPTS = tuple(random_tokens(40, VOCAB, seed) for seed in range(6))
    PARAMS = SamplingParams(temperature=0, max_tokens=24)

    @pytest.fixture
    def small(self, path: Path) -> Iterator[LLM]:
        """With room for five blocks, of which each of the prompts needs two."""
        with LLM.open(path, memory="16GiB", draft="none") as llm:
            plan = llm.plan_pass(rows=32, logit_rows=6, slots=5 * 32)
            process = plan.ceiling - plan.ring - plan.allowance - plan.kv - plan.activations
            set_budget(llm, process=process, scratch=0)
            yield llm

    def test_a_list(self, small: LLM) -> None:
        expected = [small.generate([prompt], self.PARAMS)[0].token_ids for prompt in self.PROMPTS]
        outputs = small.generate(self.PROMPTS, self.PARAMS)
        assert [output.token_ids for output in outputs] == expected

    def test_one_after_another(self, small: LLM) -> None:
        expected = [small.generate([prompt], self.PARAMS)[0].token_ids for prompt in self.PROMPTS]
        completions = [small.submit(prompt, self.PARAMS) for prompt in self.PROMPTS]
        assert small.waiting == 4
        while small.busy:
            small.step()
        assert [completion.output().token_ids for completion in completions] == expected
        for completion in completions:
            small.cancel(completion)
        assert (small.waiting, small.engine.scheduler.active) == (0, [])

    def test_without_a_number_of_tokens(self, small: LLM) -> None:
        """Each may have what it could by itself."""
        [alone] = small.generate([self.PROMPTS[0]], SamplingParams(temperature=0, ignore_eos=True))
        outputs = small.generate(self.PROMPTS, SamplingParams(temperature=0, ignore_eos=True))
        assert outputs[0].token_ids == alone.token_ids
        assert len(alone.token_ids) == 32

    def test_one_that_does_not_fit_even_alone(self, small: LLM) -> None:
        with pytest.raises(MemoryCeilingError, match="keys and values of 40 prompt tokens"):
            small.generate([self.PROMPTS[0]], SamplingParams(max_tokens=140))
        with pytest.raises(MemoryCeilingError):
            small.submit(self.PROMPTS[0], SamplingParams(max_tokens=140))
        assert not small.busy

    def test_a_cache_of_the_callers_that_takes_the_room(self, small: LLM) -> None:
        """What waits is refused where nothing else runs that could make room."""
        cache = small.new_cache()
        cache.reserve(4 * 32)
        completion = small.submit(self.PROMPTS[0], self.PARAMS)
        assert small.waiting == 1
        with pytest.raises(MemoryCeilingError):
            small.step()
        assert isinstance(completion.error, MemoryCeilingError)
        assert not small.busy


class TestResuming:
    def test_the_text_that_was_said_comes_first(self, demo: LLM) -> None:
        params = SamplingParams(temperature=0.8, seed=11, max_tokens=24)
        [whole] = demo.generate(["def main():"], params)
        for count in (1, 9, 23, 24):
            completion = demo.submit("def main():", params, drawn=whole.token_ids[:count])
            said = completion.pieces[0]
            assert said.token_ids == whole.token_ids[:count]
            assert whole.text.startswith(said.text)
            while completion.runs:
                demo.step()
            demo.cancel(completion)
            output = completion.output()
            assert (output.text, output.token_ids, output.finish_reason) == (whole.text, whole.token_ids, "length")
            assert "".join(piece.text for piece in completion.pieces) == whole.text
            assert output.stats.tokens == 24 - count

    def test_a_stop_string_across_the_seam(self, demo: LLM) -> None:
        params = SamplingParams(temperature=0, max_tokens=24)
        [free] = demo.generate(["def main():"], params)
        stop = free.text[8:14]
        [cut] = demo.generate(["def main():"], replace(params, stop=stop))
        for count in range(1, len(cut.token_ids)):
            completion = demo.submit("def main():", replace(params, stop=stop), drawn=free.token_ids[:count])
            while completion.runs:
                demo.step()
            demo.cancel(completion)
            assert completion.output().text == cut.text
            assert completion.output().token_ids == cut.token_ids


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
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
        assert len(pieces) == pieces[-1].stats.passes

    def test_stats(self, demo: LLM) -> None:
        output = self.complete(demo, max_tokens=5)
        stats = output.stats
        assert stats.tokens == 5
        assert stats.tokens_per_pass == 5 / stats.passes
        assert stats.passes + stats.guesses.accepted == 5
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
            assert cut.stats.passes <= len(cut.token_ids)

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
        """Guesses may bring several tokens a pass, and how many follows from the clock: here there are none."""
        params = SamplingParams(temperature=0, max_tokens=4)
        with LLM.open("demo", draft="none") as plain:
            outputs = plain.generate([self.PROMPT] * 3, params)
        assert {tuple(output.token_ids) for output in outputs} == {tuple(outputs[0].token_ids)}
        assert [output.stats.passes for output in outputs] == [4, 4, 4]
        assert demo.generate([self.PROMPT], params)[0].token_ids == outputs[0].token_ids

    def test_closing_a_stream_ends_its_generation(self, demo: LLM) -> None:
        stream = demo.stream(self.PROMPT, SamplingParams(max_tokens=50))
        next(stream)
        assert len(demo.engine.scheduler.active) == 1
        stream.close()
        assert demo.engine.scheduler.active == []

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
        path = tmp_path / "model"
        entries = Backend.from_file(str(DEMO / "tokenizer.json")).get_vocab_size()
        write_checkpoint(path, tiny_config(vocab_size=entries + 64))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / name, path)
        with LLM.open(path) as llm:
            [output] = llm.generate([[entries + 5, entries + 63]], SamplingParams(temperature=0, max_tokens=8))
        assert len(output.token_ids) == 8

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


OPEN_AND_MEASURE = """
import sys
from pathlib import Path
from penstock import LLM, SamplingParams
with LLM.open(sys.argv[1], memory=sys.argv[2]) as llm:
    llm.generate([[1, 2, 3] * 400], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def run_with(ceiling: str) -> subprocess.CompletedProcess[str]:
    """Open the demo model in a process of its own, which prints the most memory that it had, bytes.

    Not ru_maxrss: that has the memory of the process that started it in it.
    """
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(DEMO), ceiling]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_ceiling_holds_for_the_whole_process() -> None:
    refusal = run_with("1MiB").stderr
    least = int(refusal.split("The least that works is ")[1].split(" MiB")[0])
    for ceiling in (least + 4, least + 8):  # a process is a little larger or smaller each time
        completed = run_with(f"{ceiling}MiB")
        assert completed.returncode == 0, completed.stderr
        assert int(completed.stdout) <= ceiling << 20
