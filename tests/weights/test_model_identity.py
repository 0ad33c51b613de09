"""Which model a checkpoint is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, DEMO
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.packing.pack import pack
from penstock.sessions.identity import difference
from penstock.weights.identity import contents_identity, model_identity


def identity(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    return model_identity(checkpoint.config, checkpoint.tensors)


def test_raw_and_packed_are_one_model(tmp_path: Path) -> None:
    pack(DEMO, tmp_path / "packed")
    assert identity(tmp_path / "packed") == identity(DEMO)


@pytest.mark.parametrize("case", ["shards", "indexed", "split"])
def test_it_depends_on_no_layout(case: str, tmp_path: Path) -> None:
    config = tiny_config(**CASES[case].config)
    write_checkpoint(tmp_path / "single", config)
    assert identity(CASES[case].write(tmp_path / "other")) == identity(tmp_path / "single")


def test_every_tensor_counts(tmp_path: Path) -> None:
    config = tiny_config(attention_bias=True)
    write_checkpoint(tmp_path / "model", config)
    expected = identity(tmp_path / "model")
    for name in random_tensors(config):
        tensors = random_tensors(config)
        tensors[name] = tensors[name] ^ np.uint16(1)
        write_checkpoint(tmp_path / "other", config, tensors=tensors)
        told = difference(expected, identity(tmp_path / "other"))
        assert told == "the shape is the same, the weights are others", name


def test_what_changes_no_logit_does_not_count(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    write_checkpoint(tmp_path / "other", tiny_config(max_position_embeddings=64, eos_token_id=7))
    assert identity(tmp_path / "model") == identity(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 5e5}, "its rope is {'theta': 10000.0"),
        ({"rms_norm_eps": 1e-6}, "its rms_norm_eps is 1e-05, not 1e-06"),
        ({"num_hidden_layers": 1}, "its num_hidden_layers is 2, not 1"),
    ],
)
def test_a_config_that_differs_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    write_checkpoint(tmp_path / "other", tiny_config(**change))
    assert words in str(difference(identity(tmp_path / "model"), identity(tmp_path / "other")))


def test_another_dtype_of_the_same_values_counts_as_another_model(tmp_path: Path) -> None:
    """F32 weights of the same values give the same logits, but nobody has compared all of them."""
    write_checkpoint(tmp_path / "model", dtype="F16")
    write_checkpoint(tmp_path / "other", dtype="F32")
    assert difference(identity(tmp_path / "model"), identity(tmp_path / "other")) is not None


class TestContents:
    """What the names of stored blocks depend on."""

    def of(self, path: Path) -> bytes:
        checkpoint = open_checkpoint(path)
        return contents_identity(checkpoint.config, checkpoint.tensors)

    def test_any_bit_of_packed_weights_counts(self, tmp_path: Path) -> None:
        config = tiny_config()
        tensors = random_tensors(config)
        write_checkpoint(tmp_path / "model", config, tensors=tensors)
        name = "model.layers.0.mlp.gate_proj.weight"
        tensors[name] = tensors[name].copy()
        tensors[name][-1, -1] ^= 1  # in a row that model_identity does not look at
        write_checkpoint(tmp_path / "other", config, tensors=tensors)
        for path in ("model", "other"):
            pack(tmp_path / path, tmp_path / f"{path}-packed")
        assert identity(tmp_path / "model") == identity(tmp_path / "other")
        assert self.of(tmp_path / "model-packed") != self.of(tmp_path / "other-packed")

    def test_a_raw_file_that_was_changed_counts_as_another(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model")
        [file] = tmp_path.rglob("*.safetensors")
        os.utime(file, ns=(10**18, 10**18))
        before = self.of(tmp_path / "model")
        assert self.of(tmp_path / "model") == before
        os.utime(file, ns=(10**18, 10**18 + 1000))
        assert self.of(tmp_path / "model") != before

    def test_a_copy_is_the_same(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model")
        shutil.copytree(tmp_path / "model", tmp_path / "copy")
        assert self.of(tmp_path / "model") == self.of(tmp_path / "copy")

    def test_config_and_weights_count(self, tmp_path: Path) -> None:
        seen = set()
        for index, (theta, seed) in enumerate([(1e4, 0), (5e5, 0), (1e4, 1)]):
            config = tiny_config(rope_theta=theta)
            path = tmp_path / str(index)
            write_checkpoint(path, config, tensors=random_tensors(config, seed=seed))
            for file in path.rglob("*.safetensors"):
                os.utime(file, ns=(10**18, 10**18))
            seen.add(self.of(path))
        assert len(seen) == 3
