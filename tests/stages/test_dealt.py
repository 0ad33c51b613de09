"""An open model whose layers are dealt out among stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.cases import DEMO
from penstock import LLM
from penstock.memory.budget import RING_DEPTH, ring_fill
from penstock.models.stage import Share
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.weights.weights import Weights

MIB = 1 << 20
WINDOW = 12 * MIB
SHARES = (Share((0, 2, 4)), Share((1, 3, 5), embedding=False, head=False))
DEALT = tuple(replace(share, window=WINDOW) for share in SHARES)


def head_share(weights: Weights, head: str) -> float:
    """Which part of the head is in memory."""
    indices = [index for piece in weights._by_name[head] for index in piece]
    return sum(index in weights._resident for index in indices) / len(indices)


@pytest.mark.parametrize("packed", [False, True])
def test_rings_and_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr(machine, "footprint", lambda: Footprint(200 * MIB, 0))
    model = DEMO
    if packed:
        model = tmp_path / "packed"
        pack(DEMO, model)
    seen = []
    for shares in (SHARES, DEALT):
        options = OpenOptions(draft="none", threads=1, memory=340 * MIB, shares=shares, max_resident=2 * MIB)
        with LLM(model, options) as llm:
            tokens = llm.encode("def add(a, b):\n    return a + b\n")
            seen.append([llm.logits(tokens).tobytes() for _ in range(2)])
            first, second = (stage.weights for stage in llm.stages)
            budgets = [room.share.budget for room in llm.memory.rooms]
            if shares is DEALT:
                assert all(
                    budget.window == WINDOW <= ring_fill(budget.chunk) * budget.ring.nbytes for budget in budgets
                )
                assert len(second._stream._buffers) == budgets[1].ring.depth > RING_DEPTH
                assert head_share(first, llm.architecture.head) == 1
            else:
                assert head_share(first, llm.architecture.head) < 1
    assert seen[0] == seen[1]
