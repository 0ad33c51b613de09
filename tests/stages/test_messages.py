"""Messages between stages and hosts: what arrives is what was sent, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compute.kernels import Kernels
from penstock.compute.self_check import kernel_digest
from penstock.models.kv_cache import FreeBlocks, KvCount, MoveSlot
from penstock.models.stage import Need, Step
from penstock.stages.messages import GarbledError, Run, packed, unpacked


def test_what_was_sent_arrives() -> None:
    x = np.random.default_rng(1).standard_normal((3, 7)).astype(np.float32)
    x[0, 0], x[1, 1] = np.nan, -0.0
    step = Step(((0, FreeBlocks((1, 2))), (5, MoveSlot((1, 2), (3, 4)))), Need(3, 1, KvCount(2, 1, 5)), layers=(1, 2))
    got = unpacked(packed(Run(step, x)))
    assert got.step == step
    assert got.x.tobytes() == x.tobytes()


@given(st.data())
def test_any_bit_that_turns_is_noticed(data: st.DataObject) -> None:
    sent = packed(Run(Step(), np.zeros((2, 5), np.float32)))
    bit = data.draw(st.integers(0, 8 * len(sent) - 1))
    changed = bytearray(sent)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(GarbledError):
        unpacked(bytes(changed))


@given(st.integers(0, 200))
def test_what_is_cut_off_is_noticed(length: int) -> None:
    sent = packed({"a": list(range(100))})
    with pytest.raises(GarbledError):
        unpacked(sent[: min(length, len(sent) - 1)])


def test_arithmetic_is_alike_with_any_threads() -> None:
    assert kernel_digest(Kernels(1)) == kernel_digest(Kernels(2)) == kernel_digest(Kernels(3))
