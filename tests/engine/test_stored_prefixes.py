"""Prefixes on the disk: computed once, the bits of a run without, and never believed where they are not what was
written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.adapters import LoraCase
from helpers.assembled import GREEDY, Recorder, limited, open_engine
from helpers.cases import CASES, random_tokens
from helpers.full_disk import room_for
from helpers.numerics_oracles import same_bits
from penstock import LLM, SamplingParams, Session
from penstock.compute.kernels import F32
from penstock.engine.engine import Engine
from penstock.engine.sequence import Sequence
from penstock.engine.stored_prefixes import LEAST_BLOCKS, StoredPrefixes
from penstock.errors import ReadError, StageLostError, UsageError
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.options import OpenOptions
from penstock.prefix_cache import folder as folder_module
from penstock.prefix_cache.block_file import file_bytes
from penstock.prefix_cache.folder import BlockFolder

VOCAB, TOKENS, BLOCKS = 96, 5, 6
DOCUMENT = random_tokens(BLOCKS * BLOCK_SLOTS + 9, VOCAB, seed=7)
QUESTIONS = [random_tokens(n, VOCAB, seed=n) for n in (4, 40)]
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return CASES["gqa-4"].write(tmp_path / "model")


def store(engine: Engine, folder: Path, most_blocks: int = 1 << 20) -> Engine:
    shape = engine.chain.stages[0].kv_shape  # type: ignore[attr-defined]
    blocks = BlockFolder(folder, most_blocks * file_bytes(shape.block_bytes), shape.block_bytes)
    engine.scheduler.stored = StoredPrefixes(blocks, lambda adapter: b"root", engine.chain, engine.memory)
    return engine


@contextmanager
def process(model: Path, folder: Path | None = None, **options: int) -> Iterator[Engine]:
    """An engine that knows nothing of earlier ones but what is in the folder."""
    with open_engine(model, threads=2, **options) as engine:  # type: ignore[arg-type]
        yield engine if folder is None else store(engine, folder)


def add(engine: Engine, prompt: list[int]) -> tuple[Sequence, Recorder]:
    sequence = engine.add(prompt, GREEDY, TOKENS)
    recorder = Recorder(sequence.sampler)
    sequence.sampler = recorder  # type: ignore[assignment]
    return sequence, recorder


def finish(engine: Engine) -> list[int]:
    rows = []
    while engine.busy:
        rows.append(engine.step().rows)
    return rows


def ask(engine: Engine, *prompts: list[int]) -> tuple[list[tuple[list[int], F32]], list[int], list[int]]:
    """Tokens and logits of each, the rows of passes, and how many tokens of each were there."""
    asked = [add(engine, prompt) for prompt in prompts]
    rows = finish(engine)
    answers = [(sequence.token_ids, np.array(recorder.logits)) for sequence, recorder in asked]
    return answers, rows, [sequence.cached_tokens for sequence, _ in asked]


def require_alone(model: Path, prompts: list[list[int]], answers: list[tuple[list[int], F32]]) -> None:
    for prompt, (tokens, logits) in zip(prompts, answers, strict=True):
        with process(model) as engine:
            [(expected, exact)], _, _ = ask(engine, prompt)
        assert tokens == expected
        assert same_bits(logits, exact)


def files(folder: Path) -> list[Path]:
    """Blocks, the first one first: it counts as the latest used."""
    return sorted(folder.rglob("*.kv"), key=lambda path: -path.stat().st_mtime_ns)


def test_a_prompt_is_computed_once(model: Path, tmp_path: Path) -> None:
    prompts = [DOCUMENT + question for question in QUESTIONS]
    with process(model, tmp_path / "cache") as engine:
        first, rows, cached = ask(engine, prompts[0])
    assert (rows[0], cached) == (len(prompts[0]), [0])
    assert len(files(tmp_path / "cache")) == len(prompts[0]) // BLOCK_SLOTS
    with process(model, tmp_path / "cache") as engine:
        second, rows, cached = ask(engine, prompts[1])
    assert (rows[0], cached) == (len(prompts[1]) - BLOCKS * BLOCK_SLOTS, [BLOCKS * BLOCK_SLOTS])
    require_alone(model, prompts, first + second)


def test_it_is_there_before_the_first_token_is_told(model: Path, tmp_path: Path) -> None:
    with process(model, tmp_path / "cache") as engine:
        sequence, _ = add(engine, DOCUMENT)
        found: list[int] = []
        sequence.after_pass = lambda stats: found.append(len(files(tmp_path / "cache")))
        engine.step()
    assert found == [BLOCKS]


def test_prompts_that_begin_together_read_it_once(model: Path, tmp_path: Path) -> None:
    prompts = [DOCUMENT + question for question in QUESTIONS]
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT)
    with process(model, tmp_path / "cache") as engine:
        answers, rows, cached = ask(engine, *prompts)
        assert rows[0] == sum(map(len, prompts)) - 2 * BLOCKS * BLOCK_SLOTS
    assert cached == [BLOCKS * BLOCK_SLOTS] * 2
    require_alone(model, prompts, answers)


def test_what_memory_lacks_comes_from_the_disk(model: Path, tmp_path: Path) -> None:
    longer = DOCUMENT + random_tokens(3 * BLOCK_SLOTS, VOCAB, seed=3)
    with process(model, tmp_path / "cache") as engine:
        ask(engine, longer)
    with process(model, tmp_path / "cache") as engine:
        engine.scheduler.stored, stored = None, engine.scheduler.stored
        ask(engine, DOCUMENT)
        engine.scheduler.stored = stored
        answers, rows, _ = ask(engine, longer)
        assert rows[0] == len(longer) - len(longer) // BLOCK_SLOTS * BLOCK_SLOTS
    require_alone(model, [longer], answers)


@pytest.mark.parametrize("max_rows", [20, 100])
def test_every_pass_of_a_long_prompt_is_kept(model: Path, tmp_path: Path, max_rows: int) -> None:
    with process(model, tmp_path / "cache", max_rows=max_rows) as engine:
        add(engine, DOCUMENT)
        for done in range(max_rows, len(DOCUMENT) + 1, max_rows):
            engine.step()
            assert len(files(tmp_path / "cache")) == done // BLOCK_SLOTS


@pytest.mark.parametrize("max_rows", [50, 100, 500])
def test_a_prompt_longer_than_the_limit_leaves_its_beginning(model: Path, tmp_path: Path, max_rows: int) -> None:
    """However many passes it takes."""
    with process(model, max_rows=max_rows) as engine:
        ask(store(engine, tmp_path / "cache", LEAST_BLOCKS), DOCUMENT)
    with process(model, tmp_path / "cache") as engine:
        _, _, cached = ask(engine, DOCUMENT)
    assert cached == [LEAST_BLOCKS * BLOCK_SLOTS]


def test_what_could_not_be_kept_after_a_pass_is_after_the_next(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(model, tmp_path / "cache", max_rows=100) as engine:
        add(engine, DOCUMENT)
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "lock", lambda descriptor: False)
            patch.setattr(folder_module, "LOCK_SECONDS", 0)
            engine.step()
        assert files(tmp_path / "cache") == []
        engine.step()
        assert len(files(tmp_path / "cache")) == 200 // BLOCK_SLOTS


class TestLostStages:
    """The engine goes on with others, as it does where one is lost in a pass."""

    def lose(self, engine: Engine, patch: pytest.MonkeyPatch, name: str) -> list[str]:
        """The second call of this method of the chain fails; how often others took a stage's place."""
        real, calls, replaced = getattr(engine.chain, name), [], []

        def fails(*args: Any) -> Any:
            calls.append(name)
            if len(calls) == 2:
                raise StageLostError("one is gone.", "")
            return real(*args)

        patch.setattr(engine.chain, name, fails)
        engine.replace_lost = lambda: replaced.append(name)
        return replaced

    def test_as_blocks_are_read(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prompts = [DOCUMENT + question for question in QUESTIONS]
        with process(model, tmp_path / "cache") as engine:
            ask(engine, DOCUMENT)
        with process(model, tmp_path / "cache") as engine:
            replaced = self.lose(engine, monkeypatch, "append_block")
            answers, _, cached = ask(engine, *prompts)
        assert (len(replaced), cached) == (1, [BLOCKS * BLOCK_SLOTS] * 2)
        require_alone(model, prompts, answers)

    def test_as_blocks_are_kept(self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the pass has drawn is told; that a stage is lost comes out in the next one."""
        with process(model, tmp_path / "cache") as engine:
            replaced = self.lose(engine, monkeypatch, "read_block")
            sequence, told = engine.add(DOCUMENT, GREEDY, 1), []
            sequence.after_pass = told.append
            finish(engine)
            assert (sequence.finish_reason, sequence.error, len(told), replaced) == ("length", None, 1, [])


@pytest.mark.parametrize("max_rows", [50, 500])
def test_what_comes_with_a_prompt_was_not_there(model: Path, max_rows: int) -> None:
    """As its own score does, in the same passes: only what was there before counts."""
    for there in (0, BLOCKS * BLOCK_SLOTS):
        with process(model, max_rows=max_rows) as engine:
            if there:
                ask(engine, DOCUMENT)
            engine.score(DOCUMENT, 1)
            _, _, cached = ask(engine, DOCUMENT, DOCUMENT)
            assert cached == [there, there]


def test_short_prompts_are_not_worth_a_file(model: Path, tmp_path: Path) -> None:
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT[: LEAST_BLOCKS * BLOCK_SLOTS - 1])
        assert files(tmp_path / "cache") == []
        ask(engine, DOCUMENT[: LEAST_BLOCKS * BLOCK_SLOTS])
        assert len(files(tmp_path / "cache")) == LEAST_BLOCKS


@pytest.mark.parametrize("damaged", range(BLOCKS))
def test_a_flipped_bit_is_computed_again(model: Path, tmp_path: Path, damaged: int) -> None:
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT)
    path = files(tmp_path / "cache")[damaged]
    sound = path.read_bytes()
    path.write_bytes(sound[:100] + bytes([sound[100] ^ 4]) + sound[101:])
    with process(model, tmp_path / "cache") as engine:
        answers, rows, _ = ask(engine, DOCUMENT)
        assert rows[0] == len(DOCUMENT) - damaged * BLOCK_SLOTS
    require_alone(model, [DOCUMENT], answers)
    assert path.read_bytes() == sound


def test_a_full_disk_and_one_that_fails(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(model, tmp_path / "cache") as engine, room_for(100):
        answers, _, _ = ask(engine, DOCUMENT)
    assert files(tmp_path / "cache") == []
    require_alone(model, [DOCUMENT], answers)
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT)
    real = os.open

    def fails(path: str | Path, flags: int, *mode: int) -> int:
        if str(path).endswith(".kv"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, flags, *mode)

    with process(model, tmp_path / "cache") as engine, monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        answers, rows, _ = ask(engine, DOCUMENT)
    assert rows[0] == len(DOCUMENT)
    require_alone(model, [DOCUMENT], answers)


def test_a_pass_that_fails_after_it_was_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [DOCUMENT + question for question in QUESTIONS]
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT)
    with process(model, tmp_path / "cache") as engine:
        asked = [add(engine, prompt) for prompt in prompts]

        def fails(*_: object) -> None:
            raise ReadError("The disk failed.", "Try again.")

        with monkeypatch.context() as patch:
            patch.setattr(engine.chain, "run_pass", fails)
            with pytest.raises(ReadError):
                engine.step()
        finish(engine)
        answers = [(sequence.token_ids, np.array(recorder.logits)) for sequence, recorder in asked]
    require_alone(model, prompts, answers)


@pytest.mark.parametrize("room", [BLOCKS + 1, BLOCKS + 2])
def test_where_memory_is_scarce(model: Path, tmp_path: Path, room: int) -> None:
    with process(model, tmp_path / "cache") as engine:
        ask(engine, DOCUMENT)
    with process(model) as plain, limited(plain, room) as engine:
        store(engine, tmp_path / "cache")
        answers, _, _ = ask(engine, DOCUMENT)
    require_alone(model, [DOCUMENT], answers)


class TestOpened:
    """Through LLM.open, which says what blocks depend on."""

    def first_rows(self, llm: LLM, **options: str) -> int:
        return llm.generate([DOCUMENT], PARAMS, **options)[0].stats.log[0].rows

    def test_its_answers_are_those_without(self, model: Path, tmp_path: Path) -> None:
        params = SamplingParams(temperature=1, seed=5, max_tokens=30, ignore_eos=True)
        with LLM.open(model) as llm:
            expected = llm.generate([DOCUMENT], params)[0]
        outputs = []
        for _ in range(2):
            with LLM.open(model, prefix_cache=tmp_path / "cache") as llm:
                outputs.append(llm.generate([DOCUMENT], params)[0])
        assert [output.token_ids for output in outputs] == [expected.token_ids] * 2
        assert [output.stats.cached_tokens for output in outputs] == [0, BLOCKS * BLOCK_SLOTS]

    def test_another_model_adapter_or_type_has_its_own(self, model: Path, tmp_path: Path) -> None:
        adapters = [LoraCase().write(tmp_path / name, model, seed) for seed, name in enumerate(("one", "two"))]
        for _ in range(2):  # in the second round nothing is computed twice
            seen = []
            for kv_dtype in ("bf16", "f32"):
                with LLM.open(
                    model, draft="none", prefix_cache=tmp_path / "cache", kv_dtype=kv_dtype, adapters=adapters
                ) as llm:
                    seen += [
                        self.first_rows(llm),
                        self.first_rows(llm, adapter="one"),
                        self.first_rows(llm, adapter="two"),
                    ]
        assert seen == [len(DOCUMENT) - BLOCKS * BLOCK_SLOTS] * 6
        assert len(files(tmp_path / "cache")) == 6 * BLOCKS
        other = CASES["gqa-4"].write(tmp_path / "other")
        os.utime(next(other.glob("*.safetensors")), ns=(1, 1))
        with LLM.open(other, draft="none", prefix_cache=tmp_path / "cache") as llm:
            assert self.first_rows(llm) == len(DOCUMENT)

    def test_a_new_session_has_it_and_none_is_kept_twice(self, model: Path, tmp_path: Path) -> None:
        with LLM.open(model, prefix_cache=tmp_path / "cache") as llm:
            with Session(llm, tmp_path / "first") as session:
                first = [token for piece in session.complete(DOCUMENT, PARAMS) for token in piece.token_ids]
            assert files(tmp_path / "cache") == []
            llm.generate([DOCUMENT], PARAMS)
        with LLM.open(model, prefix_cache=tmp_path / "cache") as llm, Session(llm, tmp_path / "second") as session:
            pieces = list(session.complete(DOCUMENT, PARAMS))
            assert pieces[-1].stats.log[0].rows == len(DOCUMENT) - BLOCKS * BLOCK_SLOTS
            assert [token for piece in pieces for token in piece.token_ids] == first
            assert len(files(tmp_path / "cache")) == BLOCKS
        with LLM.open(model) as llm, Session(llm, tmp_path / "second") as session:
            assert session.rows_to_come == 2  # all of it is in its own file

    def test_a_chat_without_a_file_keeps_it(self, model: Path, tmp_path: Path) -> None:
        rows = []
        for _ in range(2):
            with LLM.open(model, draft="none", prefix_cache=tmp_path / "cache") as llm, Session(llm) as session:
                rows.append(list(session.complete(DOCUMENT, PARAMS))[-1].stats.log[0].rows)
                list(session.complete(random_tokens(50, VOCAB, seed=1), PARAMS))
        assert rows == [len(DOCUMENT), len(DOCUMENT) - BLOCKS * BLOCK_SLOTS]
        assert len(files(tmp_path / "cache")) == (len(DOCUMENT) + 3 + 50) // BLOCK_SLOTS

    def test_what_is_in_a_lent_cache_is_not_kept(self, model: Path, tmp_path: Path) -> None:
        with LLM.open(model, draft="none", prefix_cache=tmp_path / "cache") as llm:
            cache = llm.new_cache()
            for _ in range(BLOCK_SLOTS):
                llm.chain.append_slot(cache, bytes(llm.kv_shape.slot_bytes))
            completion = llm.submit(DOCUMENT, PARAMS, cache=cache)
            for _ in llm.drive([completion]):
                pass
        assert files(tmp_path / "cache") == []

    def test_the_size_is_kept(self, model: Path, tmp_path: Path) -> None:
        with LLM.open(model, prefix_cache=tmp_path / "cache", prefix_cache_size=3 * 2048) as llm:
            block_bytes = llm.kv_shape.block_bytes
            most = 3 * 2048
            for seed in range(3):
                llm.generate([random_tokens(200, VOCAB, seed=seed)], PARAMS)
                assert sum(path.stat().st_size for path in files(tmp_path / "cache")) <= most
        assert len(files(tmp_path / "cache")) == most // (block_bytes + 72)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"prefix_cache_size": "1GiB"},
            "A size of the prefix cache needs one. Give its folder too: --prefix-cache DIR.",
        ),
        ({"prefix_cache": ""}, "The prefix cache's folder has no name. Give one, or leave --prefix-cache out."),
        ({"prefix_cache": "x", "prefix_cache_size": 0}, "0 is no size of a prefix cache. Give one like 4GiB."),
        ({"prefix_cache": "x", "prefix_cache_size": "much"}, "'much' is not a size."),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        OpenOptions(**options)  # type: ignore[arg-type]
    assert words in f"{caught.value.problem} {caught.value.remedy}"
