"""What goes wrong in mid-pass, with a tree of guesses in it: it is told, and the next generation is as any other."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.assembled import GREEDY, generate, open_engine, stage_of
from helpers.cases import CASES, Case, random_tokens
from helpers.guessing import Scripted, finish, knowing, speculate
from helpers.packed_files import flip
from helpers.rooms import keep_at_most
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.completion import Piece
from penstock.engine.engine import Engine
from penstock.errors import ChecksumError, NumericsError, ReadError
from penstock.models.chain import Chain
from penstock.models.decoder import Decoder
from penstock.models.logits import Likeliest, Logits
from penstock.models.pass_stats import PassStats
from penstock.models.rows import Rows
from penstock.models.stage import Need
from penstock.options import OpenOptions
from penstock.packed_format.tensor import PackedTensor
from penstock.packing.pack import pack
from penstock.speculate.model_drafter import ModelDrafter
from penstock.speculate.recycling import Recycling

CONFIG = {
    "hidden_size": 280,
    "intermediate_size": 500,
    "vocab_size": 700,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 28,
}
PROMPT, VOCAB, TOKENS = random_tokens(19, 700), 96, 16
PARAMS = SamplingParams(temperature=0.7, seed=4, max_tokens=TOKENS, ignore_eos=True)


class Stop(Exception):  # noqa: N818
    """Stands for anything that an own callback may raise."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Case(CONFIG).write(tmp_path_factory.mktemp("model") / "raw")


@pytest.fixture(scope="module")
def sound(raw: Path) -> Path:
    """The same, packed."""
    pack(raw, raw.with_name("packed"))
    return raw.with_name("packed")


@pytest.fixture
def packed(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(sound, tmp_path / "packed")


@pytest.fixture(scope="module")
def expected(raw: Path) -> list[int]:
    with LLM(raw, OpenOptions(threads=1, draft="none")) as llm:
        return llm.generate([PROMPT], PARAMS)[0].token_ids


class Layers:
    """Raises an error after the layer that a test says."""

    def __init__(self) -> None:
        self.error: type[BaseException] | None = None
        self.left = 0

    def __call__(self, *_: float) -> None:
        self.left -= 1
        if self.error is not None and self.left < 0:
            error, self.error = self.error, None
            raise error


@pytest.fixture
def layers() -> Layers:
    return Layers()


@pytest.fixture
def llm(raw: Path, packed: Path, layers: Layers) -> Iterator[LLM]:
    """Streams all but what it guesses with; its draft is the model itself, so that runs are long."""
    with LLM(packed, OpenOptions(threads=2, draft=raw, draft_nodes=2), layers) as llm:
        keep_at_most(llm, llm.weights.draft_bytes)
        yield llm


def take(stream: Iterable[Piece], tokens: list[int]) -> None:
    for piece in stream:
        tokens += piece.token_ids


def runs_on(llm: LLM, expected: list[int]) -> None:
    """As if nothing had happened."""
    assert llm.engine.scheduler.active == []
    assert llm.generate([PROMPT], PARAMS)[0].token_ids == expected


def test_guesses_are_right_often_and_fine_bits_streamed(llm: LLM, expected: list[int]) -> None:
    """What the tests below rely on."""
    output = llm.generate([PROMPT], PARAMS)[0]
    assert output.token_ids == expected
    assert output.stats.passes < TOKENS - 4
    assert output.stats.bytes_read > 2 * llm.weights.streamed_bytes > 0


class TestReads:
    def fault(self, monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], int]:
        """Let one read fail; tells how many there were."""
        real, numbers, last = os.preadv, count(), [0]

        def read(descriptor: int, buffers: Sequence[Any], offset: int, *rest: int) -> int:
            last[0] = next(numbers)
            if last[0] == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, buffers, offset, *rest)

        monkeypatch.setattr(os, "preadv", read)
        return lambda: last[0] + 1

    def fails(self, llm: LLM, expected: list[int]) -> bool:
        try:
            runs_on(llm, expected)
        except ReadError:
            return True
        return False

    @pytest.mark.thorough
    def test_a_disk_that_fails_once(self, llm: LLM, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Wherever in the generation that is: among the weights of a pass, or rows for guessing."""
        runs_on(llm, expected)
        with monkeypatch.context() as patch:
            reads = self.fault(patch, -1)
            runs_on(llm, expected)
            total = reads()
        failures = 0
        for at in range(0, total, max(1, total // 12)):
            with monkeypatch.context() as patch:
                self.fault(patch, at)
                failed = self.fails(llm, expected)
            # What was read ahead of a pass is missed by the next one only.
            failures += failed or self.fails(llm, expected)
            runs_on(llm, expected)
        assert failures > 5

    def test_tokens_before_the_error_stand(
        self, llm: LLM, expected: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokens: list[int] = []
        runs_on(llm, expected)
        stream = llm.stream(PROMPT, PARAMS)
        for _ in range(2):
            tokens += next(stream).token_ids
        with monkeypatch.context() as patch:
            self.fault(patch, 3)
            with pytest.raises(ReadError, match="Input/output error"):
                take(stream, tokens)
        assert 2 <= len(tokens) < TOKENS
        assert tokens == expected[: len(tokens)]
        runs_on(llm, expected)

    @pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
    def test_a_bit_that_flips_in_mid_run(self, llm: LLM, packed: Path, expected: list[int], name: str) -> None:
        file, tensor = packed / "model.safetensors", open_checkpoint(packed).tensors[name]
        assert isinstance(tensor, PackedTensor)
        place = tensor.fine_extent(0, 1).offset + 2000
        runs_on(llm, expected)
        stream, tokens = llm.stream(PROMPT, PARAMS), []
        tokens += next(stream).token_ids
        tokens += next(stream).token_ids
        flip(file, place, 3)
        with pytest.raises(ChecksumError, match=name):
            take(stream, tokens)
        assert tokens == expected[: len(tokens)]
        with pytest.raises(ChecksumError, match=name):
            llm.generate([PROMPT], PARAMS)
        flip(file, place, 3)
        runs_on(llm, expected)


class TestInterrupts:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
    @pytest.mark.parametrize("after", quick([1], [0, 1, 2, 5]))
    def test_while_a_pass_checks_guesses(
        self, llm: LLM, layers: Layers, expected: list[int], after: int, error: type[BaseException]
    ) -> None:
        stream, tokens = llm.stream(PROMPT, PARAMS), []
        tokens += next(stream).token_ids
        layers.error, layers.left = error, after
        with pytest.raises(error):
            take(stream, tokens)
        assert tokens == expected[: len(tokens)]
        runs_on(llm, expected)

    @pytest.mark.parametrize("name", ["coarse", "draft"])
    @pytest.mark.parametrize("method", ["begin", "expand"])
    @pytest.mark.parametrize("call", quick([2], [1, 2, 3]))
    def test_around_a_drafter(
        self, llm: LLM, expected: list[int], name: str, method: str, call: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drafter, calls = self.drafter(llm, name), count(1)
        real = getattr(drafter, method)

        def interrupted(*args: Any) -> Any:
            found = real(*args)
            if next(calls) == call:
                raise KeyboardInterrupt
            return found

        with monkeypatch.context() as patch:
            patch.setattr(drafter, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate([PROMPT], PARAMS)
        runs_on(llm, expected)

    @pytest.mark.parametrize("name", ["coarse", "draft"])
    @pytest.mark.parametrize("call", quick([5], [1, 2, 5, 9]))
    def test_within_a_drafter(
        self, llm: LLM, expected: list[int], name: str, call: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between two layers of the drafting model, in the same sequence that goes on afterwards."""
        model, calls = self.drafter(llm, name)._model, count(1)
        real = Decoder.layer

        def interrupted(decoder: Decoder, *args: Any) -> None:
            real(decoder, *args)
            # The coarse tier's layers are walked where the target's are.
            if decoder.weights is model.weights and next(calls) == call:
                raise KeyboardInterrupt

        completion = llm._start([PROMPT], PARAMS)[0]
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "layer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                finish(llm.engine, [completion.sequence])
        finish(llm.engine, [completion.sequence])
        assert completion.output().token_ids == expected
        llm.engine.cancel(completion.sequence)
        runs_on(llm, expected)

    def drafter(self, llm: LLM, name: str) -> ModelDrafter:
        drafter = next(drafter for drafter in llm.engine.speculator.drafters if drafter.name == name)
        assert isinstance(drafter, ModelDrafter)
        return drafter

    def test_a_pass_that_is_taken_up_again(self, llm: LLM, layers: Layers, expected: list[int]) -> None:
        """The same sequence goes on after each interrupt: nothing of a pass that did not end is kept."""
        completion = llm._start([PROMPT], PARAMS)[0]
        for after in (0, 1, 0):
            llm.engine.step()
            layers.error, layers.left = KeyboardInterrupt, after
            with pytest.raises(KeyboardInterrupt):
                llm.engine.step()
        while completion.runs:
            llm.engine.step()
        assert completion.output().token_ids == expected


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_engine(CASES["gqa-4"].write(tmp_path / "model"), resident=1) as engine:
        yield engine


class TestNumerics:
    """Logits that are not finite matter where a token is drawn from them, and nowhere else."""

    def spoil(
        self, monkeypatch: pytest.MonkeyPatch, which: Callable[[list[int]], bool], value: float = float("nan")
    ) -> list[int]:
        """Spoil the logits after those tokens (of a row and its ancestors in the pass) that `which` tells of."""
        real, spoilt = Chain.run_pass, []

        def run_pass(chain: Chain, rows: Rows, need: Need | None = None) -> tuple[Logits, PassStats]:
            logits, stats = real(chain, rows, need)
            index = {int(row): i for i, row in enumerate(rows.wanted)}
            for part, span in zip(rows.sequences, rows.spans, strict=True):
                slots = {int(slot): int(token) for slot, token in zip(part.slots, part.tokens, strict=True)}
                for row in range(len(part)):
                    tail = part.tail_slots[part.tail_offsets[row] : part.tail_offsets[row + 1]]
                    if len(tail) and which([slots[int(slot)] for slot in tail]):
                        at = index[span.start + row]
                        own = logits.row(at)
                        (own.peaks if isinstance(own, Likeliest) else own)[:] = value
                        spoilt.append(row)
            return logits, stats

        monkeypatch.setattr(Chain, "run_pass", run_pass)
        return spoilt

    @pytest.fixture
    def tokens(self, engine: Engine) -> list[int]:
        return generate(engine, [[1, 2]], TOKENS)[0][0]

    def drafters(self, tokens: list[int]) -> list[Scripted | Recycling]:
        return [knowing([[1, 2, *tokens]], self.wrong(tokens)), Recycling(VOCAB)]

    def wrong(self, tokens: list[int]) -> list[int]:
        return [token for token in range(VOCAB) if token not in tokens][:2]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_at_a_wrong_guess(
        self, engine: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch, value: float
    ) -> None:
        wrong = self.wrong(tokens)
        spoilt = self.spoil(monkeypatch, lambda path: path[-1] in wrong, value)
        speculate(engine, self.drafters(tokens), 60)
        generation = engine.add([1, 2], GREEDY, TOKENS)
        assert finish(engine, [generation]) < TOKENS / 2
        assert spoilt
        assert (generation.token_ids, generation.finish_reason, generation.error) == (tokens, "length", None)

    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_at_a_right_one(
        self, engine: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch, depth: int
    ) -> None:
        """The tokens before it were sound; the other sequences go on."""
        bad = tokens[: depth + 1]  # the first of them is the root of the first tree
        self.spoil(monkeypatch, lambda path: path == bad)
        [(other_tokens, _)] = generate(engine, [[5, 6, 7]], TOKENS)
        speculate(engine, self.drafters(tokens), 20)
        generation, other = engine.add([1, 2], GREEDY, TOKENS), engine.add([5, 6, 7], GREEDY, TOKENS)
        finish(engine, [generation, other])
        assert generation.finish_reason == "error"
        assert isinstance(generation.error, NumericsError)
        assert f"position {2 + depth + 1} " in generation.error.problem
        assert generation.token_ids == tokens[: depth + 1]
        assert (other.token_ids, other.finish_reason) == (other_tokens, "length")
        assert engine.scheduler.active in ([other], [])
        assert generation.cache.n_blocks == 0
        monkeypatch.undo()
        again = engine.add([1, 2], GREEDY, TOKENS)
        finish(engine, [again])
        assert again.token_ids == tokens

    def test_at_the_root(self, engine: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.spoil(monkeypatch, lambda path: len(path) == 1)
        speculate(engine, self.drafters(tokens), 4)
        generation = engine.add([1, 2], GREEDY, TOKENS)
        finish(engine, [generation])
        assert (generation.token_ids, generation.finish_reason) == (tokens[:1], "error")


class TestDrafterErrors:
    def test_a_drafter_that_fails(self, engine: Engine) -> None:
        [(tokens, _)] = generate(engine, [[1, 2]], TOKENS)
        failing = iter([False, True, False, False, True])

        def say(*_: Any) -> list[tuple[int, float]]:
            if next(failing, False):
                raise ReadError("The draft cannot be read.", "Look at the disk.")
            return [(5, 0.5)]

        speculate(engine, [Scripted(say)], 1)
        generation, errors = engine.add([1, 2], GREEDY, TOKENS), 0
        while generation.finish_reason is None:
            try:
                engine.step()
            except ReadError:
                errors += 1
        assert errors == 2
        assert generation.token_ids == tokens


def test_a_generation_holds_what_was_committed_before_the_fault(engine: Engine) -> None:
    [(tokens, _)] = generate(engine, [[1, 2]], TOKENS)
    speculate(engine, [knowing([[1, 2, *tokens]])], 3)
    generation = engine.add([1, 2], GREEDY, TOKENS)
    engine.step()
    engine.step()
    length, drawn = generation.cache.length, list(generation.token_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_of(engine).decoder, "logits", lambda x, told: np.frombuffer(b"")[1 << 60])
        with pytest.raises(IndexError):
            engine.step()
    assert (generation.cache.length, generation.token_ids) == (length, drawn)
    finish(engine, [generation])
    assert generation.token_ids == tokens
