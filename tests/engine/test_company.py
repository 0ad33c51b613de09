"""Sequences in company under a small ceiling: none fails for the others, whoever comes, leaves or fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.assembled import GREEDY, limited, open_engine
from helpers.cases import CASES, demo_tokens, random_tokens
from helpers.guessing import speculate
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.completion import Completion
from penstock.engine.engine import Engine
from penstock.errors import MemoryCeilingError, ReadError
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.speculate.lookup import Lookup
from penstock.speculate.recycling import Recycling

VOCAB = 96
TO_THE_END = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def least_ceiling(**options: str) -> int:
    """Bytes of the least ceiling that the demo model opens under in this process."""
    with LLM.open("demo", **options):  # type: ignore[arg-type]
        pass
    with pytest.raises(MemoryCeilingError) as caught:
        LLM.open("demo", memory="40MiB", **options)  # type: ignore[arg-type]
    found = re.search(r"works is (\d+) MiB", str(caught.value))
    assert found is not None
    return int(found[1]) << 20


@pytest.mark.parametrize("blocks", quick([15, 24], range(12, 30, 3)))
def test_guesses_beside_a_prompt_that_fills_the_room(path: Path, blocks: int) -> None:
    with open_engine(path) as plain, limited(plain, blocks=blocks) as engine:
        speculate(engine, [Lookup(), Recycling(VOCAB)], fixed=4)
        first = engine.add(random_tokens(20, VOCAB), GREEDY, 30)
        engine.step()
        second = engine.add(random_tokens(300, VOCAB, seed=1), GREEDY, 2)
        finish(engine)
        assert first.finish_reason == second.finish_reason == "length"


@pytest.mark.parametrize("blocks", range(13, 22, 2))
def test_one_that_begins_like_another_amid_its_prompt(path: Path, blocks: int) -> None:
    """Admitted since it shares, it waits for what it is to share, though it is shorter than what the other has left."""
    text = random_tokens(12 * BLOCK_SLOTS + 1, VOCAB)
    with open_engine(path) as plain, limited(plain, blocks=blocks, kept_blocks=0) as engine:
        engine.scheduler.max_rows = BLOCK_SLOTS
        longer = engine.add(text, GREEDY, 2)
        engine.step()
        shorter = engine.add(text[: 10 * BLOCK_SLOTS + 1], GREEDY, 60)
        finish(engine)
        assert longer.finish_reason == shorter.finish_reason == "length"


def test_ctrl_c_between_adoption_and_pass(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads keys that were to come."""
    text = random_tokens(3 * BLOCK_SLOTS + 4, VOCAB)
    with open_engine(path) as plain:
        alone = plain.add(text, GREEDY, 8)
        finish(plain)
        with limited(plain, blocks=60) as engine:
            alike = [*text[: 3 * BLOCK_SLOTS], 5, 6, 7, 8, 9, 10]
            asked = [engine.add(prompt, GREEDY, 8) for prompt in (text, alike)]
            chunks = engine.scheduler.chunks

            def interrupted() -> None:
                chunks()
                assert any(sequence.cache.adopted for sequence in asked)
                raise KeyboardInterrupt

            monkeypatch.setattr(engine.scheduler, "chunks", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            monkeypatch.undo()
            for sequence in asked:
                engine.cancel(sequence)
            again = engine.add(text, GREEDY, 8)
            finish(engine)
            assert again.token_ids == alone.token_ids


def test_one_that_what_was_drawn_had_ended_while_it_waits() -> None:
    prompt, greedy = demo_tokens(40), SamplingParams(temperature=0, max_tokens=40)
    with LLM.open("demo", draft="none") as llm:
        [whole] = llm.generate([prompt], greedy)
        params = SamplingParams(temperature=0, max_tokens=40, stop=whole.text[20:26])
        [cut] = llm.generate([prompt], params)
        assert cut.finish_reason == "stop"
        with limited(llm.engine, blocks=8, kept_blocks=0) as engine:
            engine.add(demo_tokens(200), GREEDY, 20)
            engine.add(random_tokens(100, 500), GREEDY, 30)
            completion = Completion(engine.add(prompt, params, drawn=cut.token_ids), llm.tokenizer, params.stops)
            assert engine.scheduler.waiting
            finish(engine)
            assert completion.output().token_ids == cut.token_ids


@pytest.mark.parametrize("more", quick(1, [6, 12]))
def test_the_longest_prompt_that_is_accepted_fits_beside_a_draft_models_keys(more: int) -> None:
    memory = least_ceiling(draft="demo") + (more << 20)
    text = demo_tokens(8000)
    with LLM.open("demo", memory=memory, draft="demo", draft_nodes=2) as llm:
        length = 100
        try:
            while length < len(text):
                llm.check(text[: length + 100], TO_THE_END)
                length += 100
        except MemoryCeilingError:
            pass
        [output] = llm.generate([text[:length]], TO_THE_END)
        assert len(output.token_ids) == 3


def test_logits_after_a_generation_whose_keys_were_kept() -> None:
    text = random_tokens(4000, 512, seed=3)
    with LLM.open("demo", memory=least_ceiling(draft="none") + (8 << 20), draft="none") as llm:
        length = 100
        try:
            while length < len(text):
                llm.logits(text[: length + 200])
                length += 200
        except MemoryCeilingError:
            pass
        llm.generate([demo_tokens(1000)], SamplingParams(temperature=0, max_tokens=2))
        assert len(llm.logits(text[:length])) == length


@pytest.mark.parametrize("failing", quick([2], [1, 2, 9, 24]))
def test_a_read_that_fails_while_a_draft_model_catches_up(failing: int) -> None:
    """The same pass may be tried again."""
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    with LLM.open("demo", draft="demo", draft_nodes=6) as llm:
        [expected] = llm.generate([demo_tokens(30)], params)
        drafter = llm.engine.speculator.drafters[-1]
        assert drafter.name == "draft"
        through, calls = drafter._through, iter(range(1, 10**6))  # type: ignore[attr-defined]

        def faulty(rows: object) -> object:
            if next(calls) == failing:
                raise ReadError("The disk is gone.")
            return through(rows)

        drafter._through = faulty  # type: ignore[attr-defined]
        completion, failures = llm.submit(demo_tokens(30), params), 0
        while completion.runs:
            try:
                llm.step()
            except ReadError:
                failures += 1
        llm.cancel(completion)
        assert completion.output().token_ids == expected.token_ids
        assert failures == 1


def test_a_lent_cache_is_left_as_it_is_by_what_others_have() -> None:
    base = demo_tokens(2 * BLOCK_SLOTS)
    with LLM.open("demo", draft="none") as llm:
        cache = llm.new_cache()
        first = llm.submit([*base, 5, 6, 7], TO_THE_END, cache=cache)
        while first.runs:
            llm.step()
        llm.cancel(first)
        llm.generate([base[:BLOCK_SLOTS] + random_tokens(40, 500, seed=2)], TO_THE_END)
        cache.truncate(2 * BLOCK_SLOTS)
        second = llm.submit([*base, 9, 9, 9], TO_THE_END, cache=cache)
        assert llm.step().rows == 3
        third = llm.submit([*base, *range(40, 60)], TO_THE_END, cache=cache)
        assert not second.runs, "two sequences hold one cache"
        llm.cancel(third)
