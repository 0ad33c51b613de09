"""The whole way from the disk to a token: ceilings, and disks that misbehave in mid-run."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import Case, random_tokens
from helpers.rooms import keep_at_most, set_budget
from penstock import LLM, SamplingParams
from penstock.disk.files import DirectReadWarning
from penstock.errors import ReadError

# About 50 MB, so that a ceiling may hold half of it.
CASE = Case(
    {"hidden_size": 256, "intermediate_size": 5632, "num_hidden_layers": 5, "vocab_size": 3000},
    files={"layout": "split"},
)
TOKENS = random_tokens(30, 3000)
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model whose files a test may damage."""
    return CASE.write(tmp_path)


@pytest.fixture
def llm(own: Path) -> Iterator[LLM]:
    """None of its weights stay in memory."""
    with LLM.open(own) as llm:
        keep_at_most(llm, 0)
        yield llm


def test_ceilings_that_pin_everything_half_and_nothing(shared: Path) -> None:
    with LLM.open(shared, memory="16GiB") as llm:
        plan, expected = llm.plan_pass(rows=30, logit_rows=60, slots=30), llm.logits(TOKENS)
        assert (plan.streamed, llm.weights.resident_bytes) == (0, llm.weights.pass_bytes)
    for share in (0.5, 0):
        with LLM.open(shared, memory="16GiB") as llm:
            needs = plan.ring + plan.allowance + plan.kv + plan.activations + int(share * llm.weights.pass_bytes)
            set_budget(llm, process=plan.ceiling - needs, scratch=0)
            assert llm.logits(TOKENS).tobytes() == expected.tobytes()
            assert llm.logits(TOKENS).tobytes() == expected.tobytes()
            resident = llm.weights.resident_bytes / llm.weights.pass_bytes
            assert share - 0.2 < resident <= share + 0.01


def test_weights_that_are_given_back_between_two_layers(shared: Path) -> None:
    """As under pressure from outside, at any moment of a pass."""
    with LLM.open(shared) as llm:
        expected = llm.logits(TOKENS)
        steps = iter([llm.weights.pass_bytes // 2, 0, llm.weights.pass_bytes, 3 << 20, 0])
        llm.on_layer = lambda *_: llm.weights.limit_resident(next(steps))
        assert llm.logits(TOKENS).tobytes() == expected.tobytes()
        llm.on_layer = None
        assert llm.logits(TOKENS).tobytes() == expected.tobytes()


def test_a_shard_that_shrinks_in_mid_run(llm: LLM, own: Path) -> None:
    shard = own / "separated_weights/layers3.safetensors"
    stream = llm.stream(TOKENS, PARAMS)
    first = next(stream).token_ids
    content = shard.read_bytes()
    os.truncate(shard, len(content) // 2)
    with pytest.raises(ReadError) as caught:
        list(stream)
    assert caught.value.problem.startswith(f"{shard}: reading at offset ")
    assert "the file ends there: it shrank after it was opened" in caught.value.problem
    assert "Check the disk and the file" in caught.value.remedy
    shard.write_bytes(content)
    assert llm.generate([TOKENS], PARAMS)[0].token_ids[:1] == first, "the model is of no use after the error"


def test_a_shard_that_vanishes_in_mid_run(llm: LLM, own: Path) -> None:
    """It was opened before, so nothing is missing."""
    expected = llm.generate([TOKENS], PARAMS)[0].token_ids
    for shard in own.glob("separated_weights/*"):
        shard.unlink()
    assert llm.generate([TOKENS], PARAMS)[0].token_ids == expected


def test_a_shard_that_vanishes_before_its_first_read(own: Path) -> None:
    with LLM.open(own) as llm:
        (own / "separated_weights/lm_head.safetensors").unlink()
        with pytest.raises(ReadError, match=r"lm_head.safetensors: reading at offset 0 failed: No such file"):
            llm.generate([TOKENS], PARAMS)


def test_walks_that_nobody_finished_take_no_lock_with_them(llm: LLM) -> None:
    """The collector may close them whenever it runs, also while a read is being started."""
    expected = llm.generate([TOKENS], PARAMS)[0].token_ids
    for _ in range(3):
        walk = llm.weights.pieces("model.layers.2.mlp.up_proj.weight")
        next(walk)
        knot: list[Any] = [walk]
        knot.append(knot)
        del walk, knot
        gc.set_threshold(1)
        try:
            assert llm.generate([TOKENS], PARAMS)[0].token_ids == expected
        finally:
            gc.set_threshold(700)


class Disk:
    """os.preadv, with faults."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.fault = 0, lambda number, real: real()
        preadv = os.preadv

        def read(descriptor: int, buffers: list[Any], offset: int) -> int:
            self.reads += 1
            return self.fault(self.reads, lambda views=buffers: preadv(descriptor, views, offset))

        monkeypatch.setattr(os, "preadv", read)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_disk_that_fails_once(llm: LLM, disk: Disk) -> None:
    expected = llm.generate([TOKENS], PARAMS)[0].token_ids
    failing = disk.reads + 40

    def fault(number: int, real: Any) -> int:
        if number == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return int(real())

    disk.fault = fault
    with pytest.raises(ReadError, match="Input/output error"):
        llm.generate([TOKENS], PARAMS)
    assert llm.engine.scheduler.active == []
    assert llm.generate([TOKENS], PARAMS)[0].token_ids == expected


def test_short_reads(llm: LLM, disk: Disk) -> None:
    expected = llm.logits(TOKENS)
    random = np.random.default_rng(0)

    def fault(number: int, real: Any) -> int:
        blocks = int(random.integers(1, 5))
        return int(real([real.__defaults__[0][0][: 4096 * blocks]]))

    disk.fault = fault
    assert llm.logits(TOKENS).tobytes() == expected.tobytes()


def test_a_file_system_without_direct_reads(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM.open(own) as llm:
        expected = llm.logits(TOKENS)
    real_open = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.warns(DirectReadWarning) as told, LLM.open(own) as llm:
        assert llm.logits(TOKENS).tobytes() == expected.tobytes()
    assert len(told) == 1
