"""Pieces of experts are theirs, whatever was demanded, read ahead, kept, dropped or broken off before."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cases import MOE_CASES
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from helpers.thorough import examples
from penstock.architectures.base import Architecture
from penstock.architectures.names import SHARED, in_layer, mlp_parts
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import U8, Kernels
from penstock.disk.files import Extent
from penstock.disk.reader import Ring
from penstock.weights.weights import Weights

KERNELS = Kernels(1)
LAYERS, COUNT = 3, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    case = MOE_CASES["qwen2-moe"].config | {"num_hidden_layers": LAYERS, "num_experts": COUNT}
    config = {key: value for key, value in tiny_config(**case).items() if value is not None}
    tensors, path = random_tensors(config), tmp_path_factory.mktemp("experts")
    write_checkpoint(path, config, tensors=tensors)
    return path, tensors


def check(weights: Weights, tensors: dict[str, np.ndarray], name: str) -> None:
    for piece in weights.stored(name):
        assert piece.plain()[0].tobytes() == tensors[name][piece.rows].tobytes()


def delay(weights: Weights, seed: int) -> None:
    """Some reads take long, and end after others that were begun later."""
    rng, read = random.Random(seed), weights._files.read

    def slow(extent: Extent, buffer: U8) -> U8:
        time.sleep(rng.choice((0, 0, 0.003)))
        return read(extent, buffer)

    weights._files.read = slow  # type: ignore[method-assign]


@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_whatever_came_before(model: tuple[Path, dict[str, np.ndarray]], data: Any) -> None:
    path, tensors = model
    checkpoint = open_checkpoint(path)
    architecture: Architecture = checkpoint.architecture
    ring = Ring(data.draw(st.integers(1, 9)), data.draw(st.sampled_from([300, 700, 1 << 20])), 4)
    experts = [architecture.experts(layer) for layer in range(LAYERS)]
    weights = Weights(
        checkpoint.tensors, architecture.pass_order, KERNELS, ring, experts=experts, expert_share=2 / COUNT
    )
    dense = weights.pass_bytes - weights.expert_bytes
    budgets = st.sampled_from([0, dense // 2, dense, *(dense + share * 30_000 for share in (1, 3, 6, 40))])
    try:
        for _ in range(data.draw(st.integers(2, 7))):
            weights.limit_resident(data.draw(budgets))
            weights.rows("model.embed_tokens.weight", np.array([3]))
            for layer in range(LAYERS):
                for name in architecture.layer_matrices(layer):
                    if ".experts." not in name and ".shared_expert." not in name:
                        check(weights, tensors, name)
                least = data.draw(st.sampled_from([1, 1, COUNT]))  # some, or all: then the pass is a scan
                used = sorted(data.draw(st.sets(st.integers(0, COUNT - 1), min_size=least)))
                weights.expect([name for number in used for name in experts[layer][number]])
                if data.draw(st.integers(0, 9)) == 0:
                    break  # as after an error: the pass ends here
                for part in mlp_parts(SHARED):  # read ahead, and computed while experts are read
                    check(weights, tensors, in_layer(layer, part))
                for number in used:
                    for name in experts[layer][number]:
                        check(weights, tensors, name)
                if data.draw(st.integers(0, 4)) == 0:
                    weights.limit_resident(data.draw(budgets))  # other programs need memory
            else:
                check(weights, tensors, architecture.head)
            assert weights.resident_bytes == sum(part.nbytes for part in weights._resident.values())
            away = [part.nbytes for i, part in enumerate(weights._parts) if i not in weights._in_memory]
            assert sum(weights._away) == sum(away)
    finally:
        weights.close()
