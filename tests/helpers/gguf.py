"""Writes small GGUF files for tests, with NumPy alone, as llama.cpp's converter makes them of a checkpoint."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from helpers.checkpoints import Tensors, to_float32

ALIGNMENT = 32
TYPES = {"float32": 0, "float16": 1, "uint16": 30}
"""By the arrays that stand for them (checkpoints.py)."""
PAIRED = ("llama", "granite", "smollm3")
RAISED = ("gemma2", "gemma3")
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

_NUMBERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


class Typed(NamedTuple):
    """A value of the metadata whose type Python's own does not tell."""

    kind: int
    value: Any


class Info(NamedTuple):
    """A tensor as the header has it; `dims` innermost first."""

    name: str
    dims: Sequence[int]
    type: int
    offset: int


def architecture_of(config: Mapping[str, Any]) -> str:
    return {"gemma3_text": "gemma3", "mistral": "llama"}.get(config["model_type"], config["model_type"])


def write_gguf_of(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    more: Mapping[str, Any] | None = None,
    *,
    parts: int = 1,
) -> list[Path]:
    """Write what the converter makes of a checkpoint; `tensors` have canonical names, `more` goes to the metadata.

    With several `parts`, files as gguf-split makes them, of which `path` gives the stem.
    """
    metadata = metadata_of(config) | dict(more or {})
    stored = converted(config, tensors)
    if parts == 1:
        path.write_bytes(gguf_bytes(metadata, stored))
        return [path]
    files = []
    for index, names in enumerate(np.array_split(np.array(list(stored)), parts)):
        split = {"split.no": Typed(2, index), "split.count": Typed(2, parts), "split.tensors.count": len(stored)}
        files.append(path.with_name(f"{path.stem}-{index + 1:05}-of-{parts:05}.gguf"))
        part = {name: stored[name] for name in names.tolist()}
        files[-1].write_bytes(gguf_bytes((metadata if index == 0 else {}) | split, part))
    return files


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    name, heads = architecture_of(config), config["num_attention_heads"]
    own = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": config["head_dim"],
    }
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    own["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type", rope.get("type")) in ("linear", "yarn"):
        own |= {"rope.scaling.type": rope.get("rope_type", rope.get("type")), "rope.scaling.factor": rope["factor"]}
    if config["hidden_size"] // heads != config["head_dim"]:
        own |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    if rope.get("rope_type") == "yarn":
        own["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if original := config.get("original_max_position_embeddings"):
        own |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": 1.19}
    if "partial_rotary_factor" in config:
        own["rope.dimension_count"] = int(config["head_dim"] * config["partial_rotary_factor"])
    if name in (*RAISED, "phi3", "exaone4"):
        own["attention.sliding_window"] = config.get("sliding_window") or 0
    if name in (*RAISED, "exaone4") and "layer_types" in config:
        own["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    own |= {theirs: float(config[ours]) for ours, theirs in _NUMBERS.items() if config.get(ours) is not None}
    ids = {f"tokenizer.ggml.{kind}_token_id": config.get(f"{kind}_token_id") for kind in ("bos", "eos")}
    said = {key: value for key, value in ids.items() if value is not None}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in own.items()}, **said}


def converted(config: Mapping[str, Any], tensors: Tensors) -> Tensors:
    """The tensors of a checkpoint by their names in GGUF, stored as there: vectors as float32."""
    name = architecture_of(config)
    stored = {}
    for full, values in tensors.items():
        weight, kind = full.rsplit(".", 1)
        if name in PAIRED and weight.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if weight.endswith("q_proj") else "num_key_value_heads"]
            values = permuted(values, heads)
        if values.ndim == 1:
            values = to_float32(values)
        if name in RAISED and weight.endswith("norm"):
            values = values + np.float32(1)
        stored[f"{_stored_name(weight, name)}.{kind}"] = values
    if (factors := llama3_factors(config)) is not None:
        stored["rope_freqs.weight"] = factors
    for length in ("long", "short"):
        if longrope := (config.get("rope_scaling") or {}).get(f"{length}_factor"):
            stored[f"rope_factors_{length}.weight"] = np.array(longrope, np.float32)
    return stored


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """As LlamaModel.permute of llama.cpp's converter."""
    return values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def llama3_factors(config: Mapping[str, Any]) -> np.ndarray | None:
    """As the converter computes them, in float32."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type") != "llama3":
        return None
    dim, theta = config["head_dim"], rope.get("rope_theta", config.get("rope_theta"))
    freqs = np.float32(1) / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original, factors = rope["original_max_position_embeddings"], []
    for wavelength in np.float32(2 * math.pi) / freqs:
        smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / np.float32(factor) + smooth))
    return np.array(factors, np.float32)


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], version: int = 3) -> bytes:
    """A GGUF file."""
    infos, data = [], b""
    for name, values in tensors.items():
        data += b"\0" * (-len(data) % ALIGNMENT)
        infos.append(Info(name, values.shape[::-1], TYPES[values.dtype.name], len(data)))
        data += np.ascontiguousarray(values).tobytes()
    head = header_bytes(metadata, infos, version)
    return head + b"\0" * (-len(head) % ALIGNMENT) + data + b"\0" * (-len(data) % ALIGNMENT)


def header_bytes(metadata: Mapping[str, Any], infos: Sequence[Info], version: int = 3) -> bytes:
    """All that comes before the padding and the data."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(metadata))
    for key, value in metadata.items():
        out += string_bytes(key) + value_bytes(value)
    for info in infos:
        out += string_bytes(info.name) + struct.pack(f"<I{len(info.dims)}Q", len(info.dims), *info.dims)
        out += struct.pack("<IQ", info.type, info.offset)
    return out


def string_bytes(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value_bytes(value: Any) -> bytes:
    """The type and the value: integers as uint32, floats as float32."""
    if isinstance(value, Typed):
        return struct.pack("<I", value.kind) + _number(value.kind, value.value)
    if isinstance(value, list):
        parts = [value_bytes(one) for one in value]
        kind = parts[0][:4] if parts else struct.pack("<I", 4)
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(part[4:] for part in parts)
    kind = {bool: 7, int: 5 if isinstance(value, int) and value < 0 else 4, float: 6, str: 8}[type(value)]
    return struct.pack("<I", kind) + (string_bytes(value) if kind == 8 else _number(kind, value))


def _number(kind: int, value: Any) -> bytes:
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    return struct.pack(f"<{formats[kind]}", value)


def _stored_name(weight: str, architecture: str) -> str:
    if weight in _TOP:
        return _TOP[weight]
    _, _, layer, part = weight.split(".", 3)
    sandwich = architecture in (*RAISED, "olmo2", "exaone4")
    own = "post_attention_norm" if sandwich and part == "post_attention_layernorm" else _PARTS[part]
    return f"blk.{layer}.{own}"
