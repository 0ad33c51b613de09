"""Disks that fail amid the passes of sequences that share what they begin with: no token is another one for it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.assembled import GREEDY, Recorder, open_engine
from helpers.cases import CASES, random_tokens
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock.compute.kernels import F32
from penstock.errors import ReadError
from penstock.models.kv_cache import BLOCK_SLOTS

VOCAB, TOKENS, TRIED = 96, 3, 12
SYSTEM = random_tokens(3 * BLOCK_SLOTS + 5, VOCAB, seed=7)
QUESTIONS = [random_tokens(n, VOCAB, seed=n) for n in (4, 9, 40)]
Answers = list[tuple[list[int], F32]]


class Disk:
    """os.preadv, whose read number `failing` meets with `fault`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.failing = 0
        self.fault: Callable[[Callable[..., int], memoryview], int] = lambda real, view: real(view)
        preadv = os.preadv

        def read(descriptor: int, views: list[memoryview], offset: int) -> int:
            self.reads += 1
            if self.reads != self.failing:
                return preadv(descriptor, views, offset)
            return self.fault(lambda view: preadv(descriptor, [view], offset), views[0])

        monkeypatch.setattr(os, "preadv", read)


def fails(real: Callable[..., int], view: memoryview) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def ends(real: Callable[..., int], view: memoryview) -> int:
    return 0


def comes_short(real: Callable[..., int], view: memoryview) -> int:
    return real(view[:4096])


def answers(path: Path, disk: Disk, failing: int) -> tuple[Answers, list[str]]:
    """Tokens and logits of all questions, asked together, and the errors; a pass that fails is run again."""
    errors = []
    with open_engine(path, threads=2) as engine:
        disk.reads, disk.failing = 0, failing
        asked: list[tuple[Any, Recorder]] = []
        for question in QUESTIONS:
            generation = engine.add(SYSTEM + question, GREEDY, TOKENS)
            generation.sampler = recorder = Recorder(generation.sampler)  # type: ignore[assignment]
            asked.append((generation, recorder))
        while engine.busy:
            try:
                engine.step()
            except ReadError as error:
                errors.append(str(error))
        return [(generation.token_ids, np.array(recorder.logits)) for generation, recorder in asked], errors


@pytest.mark.skipif(not hasattr(os, "preadv"), reason=f"{sys.platform} reads otherwise")
@pytest.mark.parametrize("fault", quick(1, [fails, ends, comes_short]))
def test_a_read_of_any_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., int]) -> None:
    path = CASES["gqa-4"].write(tmp_path / "model")
    disk = Disk(monkeypatch)
    expected, errors = answers(path, disk, 0)
    reads, disk.fault, told = disk.reads, fault, 0
    assert not errors
    for failing in np.linspace(1, reads, TRIED).astype(int):
        given, errors = answers(path, disk, failing)
        assert len(errors) <= 1  # none for what was read ahead and never used
        told += len(errors)
        assert all("model.safetensors: reading at offset" in error for error in errors)
        for (tokens, logits), (right_tokens, right_logits) in zip(given, expected, strict=True):
            assert tokens == right_tokens
            assert same_bits(logits, right_logits)
    assert (told > TRIED / 2) == (fault is not comes_short)
