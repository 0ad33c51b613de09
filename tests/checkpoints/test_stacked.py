"""Experts that a file holds as one tensor for a layer are those of files that hold each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import MOE_CASES
from helpers.checkpoints import Tensors, random_tensors, tiny_config, write_checkpoint
from helpers.numerics_oracles import same_bits
from penstock import LLM
from penstock.architectures.names import stacked_part
from penstock.errors import CheckpointError
from penstock.packed_format.layout import cut
from penstock.packing.pack import pack
from penstock.packing.unpack import unpack
from penstock.packing.verify import verify
from penstock.safetensors_header import DType, TensorInfo, read_header

TOKENS = [5, 9, 60, 2, 33]
WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256}


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


def write(path: Path, name: str, change: bool, dtype: str = "BF16", **sizes: int) -> Path:
    config = {key: value for key, value in tiny_config(**MOE_CASES[name].config | sizes).items() if value is not None}
    tensors = random_tensors(config, dtype)
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


@pytest.mark.parametrize("name", ["qwen3-moe", "glm4-moe"])
def test_packed(tmp_path: Path, name: str) -> None:
    """Version 2 of the format, whose chunks have rows of one matrix only; and the file comes back byte for byte."""
    logits = []
    for change in (False, True):
        raw = write(tmp_path / f"{change}", name, change, **WIDE)
        pack(raw, tmp_path / f"{change} packed")
        with LLM.open(tmp_path / f"{change} packed") as llm:
            logits.append(llm.logits(TOKENS))
            assert any(
                getattr(tensor, "in_tiers", False) for name, tensor in llm.weights.tensors.items() if "exp" in name
            )
    assert same_bits(*logits)
    file = tmp_path / "True packed" / "model.safetensors"
    assert read_header(file).metadata["version"] == "2"
    assert read_header(tmp_path / "False packed" / "model.safetensors").metadata["version"] == "1"
    assert verify(tmp_path / "True packed", against=tmp_path / "True").sound
    unpack(tmp_path / "True packed", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "True" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_stored_raw(tmp_path: Path, dtype: str) -> None:
    """What the format does not pack it cuts likewise."""
    raw = write(tmp_path / "raw", "olmoe", True, dtype=dtype)
    pack(raw, tmp_path / "packed")
    logits = []
    for path in (raw, tmp_path / "packed"):
        with LLM.open(path) as llm:
            logits.append(llm.logits(TOKENS))
    assert same_bits(*logits)


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 3000))
def test_chunks_have_rows_of_one_matrix(count: int, half: int, cols: int) -> None:
    tensor = TensorInfo("x", DType.BF16, (count, 2 * half, cols), Path("x"), 0, count * 4 * half * cols)
    how = cut(tensor, 2)
    assert (how.rows, how.cols, how.whole) == (count * 2 * half, cols, half)
    assert how.allows(how.rows_per_chunk())
    assert half % how.rows_per_chunk() == 0
    assert not how.allows(2 * half + 1)
    assert cut(tensor, 1).whole == 0


def test_another_number_of_experts(tmp_path: Path) -> None:
    config = {key: value for key, value in tiny_config(**MOE_CASES["olmoe"].config).items() if value is not None}
    tensors = stacked(random_tensors(config), config["num_experts"])
    write_checkpoint(tmp_path, config | {"num_experts": 9}, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        LLM.open(tmp_path)


def test_what_is_stacked() -> None:
    assert stacked_part("model.layers.0.mlp.experts.down_proj", (4, 8, 8)) == ("model.layers.0", "down_proj")
    assert stacked_part("model.layers.0.mlp.experts.down_proj", (8, 8)) is None
    assert stacked_part("model.layers.0.mlp.experts.3.down_proj.weight", (4, 8, 8)) is None
