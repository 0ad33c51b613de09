from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from helpers.checkpoint_checks import INDEX, Q_PROJ, SHARD_2, check_refused, check_same, edit_index, warnings_of
from helpers.checkpoints import safetensors_bytes, tensor_shapes, tiny_config, write_checkpoint
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import generation_defaults, open_checkpoint
from penstock.checkpoints.generation_config import GenerationDefaults
from penstock.errors import CheckpointError, CheckpointWarning, FormatError, UnsupportedError
from penstock.safetensors_header import DType

DEMO = Path(penstock.__file__).parent / "data" / "demo"


def test_demo_model() -> None:
    checkpoint = open_checkpoint(DEMO)
    assert (checkpoint.path, checkpoint.files) == (DEMO, (DEMO / "model.safetensors",))
    assert list(checkpoint.tensors) == list(Architecture(checkpoint.config).tensors)
    assert len(checkpoint.tensors) == 6 * 9 + 3
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {DType.BF16}
    assert sum(tensor.n_elements for tensor in checkpoint.tensors.values()) == 6_622_464


def test_tensors_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        open_checkpoint(DEMO).tensors["x"] = None  # type: ignore[index]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_weight_dtype(dtype: str, tmp_path: Path) -> None:
    check_same(tmp_path, write_checkpoint(tmp_path, dtype=dtype))
    assert {tensor.dtype.value for tensor in open_checkpoint(tmp_path).tensors.values()} == {dtype}


def test_biases_and_odd_shapes(tmp_path: Path) -> None:
    config = tiny_config(attention_bias=True, mlp_bias=True, hidden_size=30, head_dim=2, num_key_value_heads=1)
    check_same(tmp_path, write_checkpoint(tmp_path, config, layout="indexed"))


def test_enlarged_vocabulary(tmp_path: Path) -> None:
    check_same(tmp_path, write_checkpoint(tmp_path, tiny_config(vocab_size=101)))


@given(st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3))
def test_expected_tensors(tied: bool, attention_bias: bool, mlp_bias: bool, layers: int) -> None:
    config = tiny_config(
        tie_word_embeddings=tied, attention_bias=attention_bias, mlp_bias=mlp_bias, num_hidden_layers=layers
    )
    assert Architecture(parse_config(config, "config.json")).tensors == tensor_shapes(config)


def test_tensors_come_in_the_order_of_a_pass(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    assert list(open_checkpoint(tmp_path).tensors) == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]


def test_opening_reads_no_data(tmp_path: Path) -> None:
    """A file of holes, far larger than memory, opens at once."""
    write_checkpoint(tmp_path)
    size = 2**40
    header = {"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    raw = json.dumps(header).encode()
    with (tmp_path / "separated_weights.tmp").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        try:
            file.truncate(8 + len(raw) + size)
        except OSError:
            pytest.skip("no sparse files here")
    (tmp_path / "separated_weights.tmp").rename(tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    assert warnings_of(tmp_path) == [f"{tmp_path}: passing over tensors that are not part of the model: 'big'"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not JSON: Expecting property name"),
        ("[]", "config.json is [], not a JSON object"),
        ('{"a": 1, "a": 2}', "config.json has the key 'a' twice"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
    ],
)
def test_config_is_no_json_object(content: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(content)
    check_refused(tmp_path, FormatError, message)


def test_config_of_another_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(model_type="gemma2")))
    check_refused(tmp_path, UnsupportedError, "config.json: the model_type is 'gemma2'", "Penstock runs Llama")


@pytest.mark.parametrize("layout", ["single", "indexed", "numbered"])
def test_truncated_shard(layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout=layout)
    path = tmp_path / ("model.safetensors" if layout == "single" else SHARD_2)
    os.truncate(path, path.stat().st_size - 1)
    check_refused(tmp_path, FormatError, f"{path}: tensor ", "Download or copy the file again")
    check_refused(tmp_path, FormatError, ": truncated, or a wrong offset")


def test_git_lfs_pointer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    (tmp_path / SHARD_2).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4976698672\n")
    check_refused(tmp_path, FormatError, f"{SHARD_2} is a Git LFS pointer", "Run `git lfs pull`")


@pytest.mark.parametrize("shard", ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"])
def test_index_places_a_tensor_in_the_wrong_shard(shard: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    name = "model.layers.0.mlp.down_proj.weight"
    edit_index(tmp_path, lambda index: index["weight_map"].update({name: shard}))
    check_refused(tmp_path, FormatError, f"{shard} lacks the tensor '{name}', which {INDEX} places there")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, layout="numbered")
    path = tmp_path / "model-00001-of-00003.safetensors"
    path.write_bytes(safetensors_bytes({name: tensors[name] for name in ["model.norm.weight"]}))
    message = f"The tensor 'model.norm.weight' is there twice: in {path} and in "
    check_refused(tmp_path, FormatError, message, "Remove the file that does not belong")


def test_tensor_twice_in_one_part(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, layout="split")
    norm = tensors["model.norm.weight"]
    path = tmp_path / "separated_weights" / "norm.safetensors"
    path.write_bytes(safetensors_bytes({"weight": norm, "norm.weight": norm}))
    check_refused(tmp_path, FormatError, "The tensor 'model.norm.weight' is there twice")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", Q_PROJ, "model.norm.weight", "lm_head.weight"])
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    del tensors[name]
    write_checkpoint(tmp_path, tensors=tensors)
    check_refused(tmp_path, CheckpointError, f"lacks the tensor '{name}', which its config.json calls for")


def test_missing_bias(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    write_checkpoint(tmp_path, tiny_config(attention_bias=True), tensors=tensors)
    check_refused(tmp_path, CheckpointError, "lacks the tensor 'model.layers.0.self_attn.q_proj.bias'")


def test_config_with_layers_without_end(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    for layout in ("single", "split"):
        write_checkpoint(tmp_path / layout, tensors=tensors, layout=layout)
        (tmp_path / layout / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=2**16)))
    message = "lacks the tensor 'model.layers.2.input_layernorm.weight'"
    check_refused(tmp_path / "single", CheckpointError, message)
    check_refused(tmp_path / "split", CheckpointError, "lacks layers2.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 97}, "model.embed_tokens.weight has shape (96, 32), but config.json makes it (97, 32)"),
        ({"num_key_value_heads": 1}, "k_proj.weight has shape (16, 32), but config.json makes it (8, 32)"),
        ({"intermediate_size": 40}, "gate_proj.weight has shape (48, 32), but config.json makes it (40, 32)"),
    ],
)
def test_wrong_shape(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(**change)))
    check_refused(tmp_path, CheckpointError, message, "of the same model together")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_quantized_dtype(dtype: type[np.generic], tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    tensors[Q_PROJ] = np.zeros((16, 16), dtype)
    write_checkpoint(tmp_path, tensors=tensors)
    kind = {"int8": "I8", "uint8": "U8", "int32": "I32", "uint32": "U32"}[np.dtype(dtype).name]
    message = f"{Q_PROJ} is {kind}, not the full-precision weights (BF16, F16 or F32)"
    check_refused(tmp_path, UnsupportedError, message, "Use the original checkpoint")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4"])
def test_quantized_float_dtype(dtype: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    tensors["model.norm.weight"] = np.zeros(32, np.int8)
    content = safetensors_bytes(tensors)
    shape = ', "shape": [64]' if dtype == "F4" else ', "shape": [32]'
    changed = content[8:].replace(b'"I8", "shape": [32]', f'"{dtype}"{shape}'.encode())
    n_bytes = int.from_bytes(content[:8], "little") + len(changed) - len(content[8:])
    (tmp_path / "model.safetensors").write_bytes(n_bytes.to_bytes(8, "little") + changed)
    check_refused(tmp_path, UnsupportedError, f"model.norm.weight is {dtype}, not the full-precision weights")


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "F64"), (np.complex64, "C64"), (np.bool_, "BOOL")])
def test_other_dtype(dtype: type[np.generic], name: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    tensors[Q_PROJ] = tensors[Q_PROJ].astype(dtype)
    write_checkpoint(tmp_path, tensors=tensors)
    check_refused(tmp_path, UnsupportedError, f"{Q_PROJ} is {name}, not BF16, F16 or F32", "Convert")


@pytest.mark.parametrize(
    "suffix",
    [
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "SCB",
        "weight_scale",
        "weight_packed",
        "weight.absmax",
        "weight.quant_state.bitsandbytes__nf4",
    ],
)
def test_quantized_names(suffix: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    name = Q_PROJ.removesuffix("weight") + suffix
    tensors[name] = tensors.pop(Q_PROJ)
    write_checkpoint(tmp_path, tensors=tensors)
    message = f"holds '{name}': quantized, not the full-precision weights"
    check_refused(tmp_path, UnsupportedError, message, "Use the original checkpoint")


def test_quantization_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(quantization_config={"quant_method": "awq"}))
    check_refused(tmp_path, UnsupportedError, "quantization_config is set, so these are not the full-precision weights")


def test_unexpected_tensors_warn_once(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    write_checkpoint(tmp_path, tensors=tensors | {"score.weight": np.zeros(4, np.float32), "x": np.zeros(4, np.int8)})
    assert warnings_of(tmp_path) == [
        f"{tmp_path}: passing over tensors that are not part of the model: 'score.weight', 'x'"
    ]
    with pytest.warns(CheckpointWarning):
        assert open_checkpoint(tmp_path).tensors.keys() == tensors.keys()


def test_harmless_tensors_are_passed_over(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    tensors = write_checkpoint(tmp_path, config)
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    more["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(tmp_path, config, tensors=tensors | more)
    check_same(tmp_path, tensors)


def test_generation_defaults_without_a_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(eos_token_id=[1, 4]))
    assert generation_defaults(tmp_path) == GenerationDefaults(eos_token_ids=(1, 4))


def test_generation_defaults_override_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, generation_config={"eos_token_id": [7, 8], "do_sample": True, "temperature": 0.6})
    expected = GenerationDefaults(do_sample=True, temperature=0.6, eos_token_ids=(7, 8))
    assert generation_defaults(tmp_path) == expected


def test_generation_defaults_of_the_demo_model() -> None:
    assert generation_defaults(DEMO) == GenerationDefaults(eos_token_ids=(1, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "generation_config.json is not JSON"),
        ('{"top_p": 2}', "generation_config.json: top_p is 2, not a number above 0, at most 1"),
    ],
)
def test_malformed_generation_defaults(content: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(FormatError) as caught:
        generation_defaults(tmp_path)
    assert message in caught.value.problem
