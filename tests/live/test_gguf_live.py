"""The `gguf` package of llama.cpp reads what the tests' own writer writes, and what it writes is read here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, random_tokens
from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.gguf import Typed, architecture_of, converted, gguf_bytes, metadata_of
from penstock import LLM
from penstock.gguf.reader import read_gguf

gguf = pytest.importorskip("gguf")

NAMES = ("gqa-4", "biases", "rope-llama3", "qwen2", "f16", "f32", "gemma3", "phi3-longrope", "olmo2", "exaone4")


def config_of(name: str) -> dict[str, Any]:
    config = {key: value for key, value in tiny_config(**CASES[name].config).items() if value is not None}
    return config | dict.fromkeys(CASES[name].nulls)


def write_by_package(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, architecture_of(config))
    for key, value in metadata_of(config).items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
            writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.STRING))
    for name, values in converted(config, tensors).items():
        bf16 = values.dtype == np.uint16
        raw = gguf.GGMLQuantizationType.BF16 if bf16 else None
        writer.add_tensor(name, np.ascontiguousarray(values).view(np.uint8) if bf16 else values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", NAMES)
def test_written_by_the_package(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    if config["model_type"] == "gemma3_text":
        config["query_pre_attn_scalar"] = config["head_dim"]
    tensors = write_checkpoint(tmp_path / "hf", config, dtype=CASES[name].dtype)
    write_by_package(tmp_path / "m.gguf", config, tensors)
    tokens = random_tokens(30, config["vocab_size"])
    with LLM.open(tmp_path / "hf") as original, LLM.open(tmp_path / "m.gguf") as ours:
        expected, logits = original.logits(tokens), ours.logits(tokens)
    np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_called_as_the_package_calls_them(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    tensors = write_checkpoint(tmp_path / "hf", config, dtype=CASES[name].dtype)
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture_of(config))
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    theirs = {names.get_name(tensor, try_suffixes=(".weight", ".bias")) for tensor in tensors}
    extra = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    assert converted(config, tensors).keys() - extra == theirs


def test_read_by_the_package(tmp_path: Path) -> None:
    config = config_of("gqa-4")
    tensors = converted(config, write_checkpoint(tmp_path / "hf", config))
    metadata = metadata_of(config) | {"list": ["a", "b"], "wide": Typed(10, 2**40), "yes": True}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, tensors))
    theirs, ours = gguf.GGUFReader(tmp_path / "m.gguf"), read_gguf(tmp_path / "m.gguf")
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == value
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        place = ours.tensors[tensor.name]
        assert tensor.data_offset == place.begin
        assert tensor.n_bytes == place.end - place.begin
        assert tuple(reversed(tensor.shape.tolist())) == place.shape
