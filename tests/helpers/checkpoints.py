"""Writes small checkpoints for tests: any shape, dtype and layout, with NumPy alone.

Arrays stand for tensors by their dtype: uint16 is BF16, float16 F16, float32 F32; others as `DTYPE_NAMES` says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helpers.family_reading import read, tensor_shapes

DTYPE_NAMES = {
    "uint16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
}

Tensors = dict[str, np.ndarray]


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The content of a config.json of a Llama with about 10,000 weights; a change to None writes null."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    return config | changes


def random_tensors(config: Mapping[str, Any], dtype: str = "BF16", seed: int = 0) -> Tensors:
    """Random weights that keep activations near 1: norms multiply by about 1, matrices by 1 / sqrt(columns)."""
    rng, reading = np.random.default_rng(seed), read(config)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            values = (0 if reading.one_more else 1) + 0.1 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        elif "embed_tokens" not in name:
            values = values / np.sqrt(np.float32(shape[1]))
        else:
            values = values / np.float32(reading.embedding)
        tensors[name] = as_dtype(values.astype(np.float32), dtype)
    return tensors


def as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as BF16 (uint16), F16 or F32."""
    if dtype == "BF16":
        return to_bf16(values)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Finite float32 values rounded to BF16, to nearest, ties to even: uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def to_float32(values: np.ndarray) -> np.ndarray:
    """A tensor's values as float32; uint16 is BF16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file; the data follows the order of `tensors`."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name, values in tensors.items():
        offsets = [begin, begin + values.nbytes]
        header[name] = {"dtype": DTYPE_NAMES[values.dtype.name], "shape": list(values.shape), "data_offsets": offsets}
        begin += values.nbytes
    data = b"".join(np.ascontiguousarray(values).tobytes() for values in tensors.values())
    return file_bytes(header, data)


def file_bytes(header: Any, data: bytes = b"") -> bytes:
    """A file with any `header`: an object to write as JSON, or bytes as they stand."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any] | None = None,
    *,
    tensors: Tensors | None = None,
    dtype: str = "BF16",
    seed: int = 0,
    layout: str = "single",
    shards: int = 3,
    names: str = "whole",
    generation_config: Mapping[str, Any] | None = None,
) -> Tensors:
    """Write a checkpoint into the directory `path` and return its tensors, by canonical names.

    layout: "single"; "indexed" or "numbered", both of `shards` shards, with and without an index; "split", one file a
    layer, where names are "whole", "bare" (without the part's prefix) or "no_model" (only "model." left out).
    """
    config = tiny_config() if config is None else config
    tensors = random_tensors(config, dtype, seed) if tensors is None else tensors
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    files = {"single": _single, "indexed": _shards, "numbered": _shards, "split": _split}[layout](tensors, shards)
    for file, names_in_file in files.items():
        (path / file).parent.mkdir(exist_ok=True)
        stored = {_stored_name(name, names): tensors[name] for name in names_in_file}
        (path / file).write_bytes(safetensors_bytes(stored, {"format": "pt"}))
    if layout == "indexed":
        weight_map = {name: file for file, names_in_file in files.items() for name in names_in_file}
        total = sum(values.nbytes for values in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def _single(tensors: Tensors, _: int) -> dict[str, list[str]]:
    return {"model.safetensors": list(tensors)}


def _shards(tensors: Tensors, shards: int) -> dict[str, list[str]]:
    parts = np.array_split(np.array(list(tensors)), shards)
    return {
        f"model-{number:05}-of-{shards:05}.safetensors": part.tolist() for number, part in enumerate(parts, start=1)
    }


def _split(tensors: Tensors, _: int) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for name in tensors:
        words = name.removeprefix("model.").split(".")
        part = words[0] + words[1] if words[0] == "layers" else words[0]
        files.setdefault(f"separated_weights/{part}.safetensors", []).append(name)
    return files


def _stored_name(name: str, names: str) -> str:
    if names == "whole":
        return name
    words = name.removeprefix("model.").split(".")
    if names == "no_model":
        return ".".join(words)
    return ".".join(words[2:] if words[0] == "layers" else words[1:])
