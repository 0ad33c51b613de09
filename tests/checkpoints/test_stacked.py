"""Experts that a file holds as one tensor for a layer are those of files that hold each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.cases import MOE_CASES
from helpers.checkpoints import Tensors, random_tensors, tiny_config, write_checkpoint
from helpers.numerics_oracles import same_bits
from penstock import LLM
from penstock.checkpoints.stacked import is_stacked
from penstock.errors import CheckpointError, UnsupportedError
from penstock.packing.pack import pack

TOKENS = [5, 9, 60, 2, 33]


def stacked(tensors: Tensors, count: int) -> Tensors:
    """The same weights as transformers 5 keeps them in memory."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        experts = [f"model.layers.{layer}.mlp.experts.{number}" for number in range(count)]
        if f"{experts[0]}.up_proj.weight" in tensors:
            both = [np.concatenate([tensors[f"{e}.{p}_proj.weight"] for p in ("gate", "up")]) for e in experts]
            found[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.stack(both)
            down = np.stack([tensors[f"{e}.down_proj.weight"] for e in experts])
            found[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    return found


def write(path: Path, name: str, change: bool) -> Path:
    config = {key: value for key, value in tiny_config(**MOE_CASES[name].config).items() if value is not None}
    tensors = random_tensors(config)
    count = config.get("num_experts") or config["n_routed_experts"]
    write_checkpoint(path, config, tensors=stacked(tensors, count) if change else tensors)
    return path


@pytest.mark.parametrize("name", ["qwen3-moe", "olmoe", "qwen2-moe", "glm4-moe"])
def test_the_same_bits(tmp_path: Path, name: str) -> None:
    logits = []
    for change in (False, True):
        with LLM.open(write(tmp_path / f"{change}", name, change)) as llm:
            logits.append(llm.logits(TOKENS))
    assert same_bits(*logits)


def test_they_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be packed") as caught:
        pack(write(tmp_path / "raw", "olmoe", True), tmp_path / "packed")
    assert "save_original_format=True" in caught.value.remedy


def test_another_number_of_experts(tmp_path: Path) -> None:
    config = {key: value for key, value in tiny_config(**MOE_CASES["olmoe"].config).items() if value is not None}
    tensors = stacked(random_tensors(config), config["num_experts"])
    write_checkpoint(tmp_path, config | {"num_experts": 9}, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM.open(tmp_path)


def test_what_is_stacked() -> None:
    assert is_stacked("model.layers.0.mlp.experts.down_proj", (4, 8, 8))
    assert not is_stacked("model.layers.0.mlp.experts.down_proj", (8, 8))
    assert not is_stacked("model.layers.0.mlp.experts.3.down_proj.weight", (4, 8, 8))
