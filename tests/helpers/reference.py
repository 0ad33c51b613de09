"""The reference: a Llama's forward pass in float64, by the textbook, from the files of a checkpoint.

Only RoPE's angles are formed in float32, as `transformers` forms them, and keys and values are rounded to BF16 where
that is asked. `forward` takes its operations from a namespace: this module's are exact; those of error_bounds.py
carry along what float32 arithmetic may differ by.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Reference:
    """A checkpoint in float64."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.weights = read_weights(path)
        heads = self.config["num_attention_heads"]
        self.head_dim: int = self.config.get("head_dim") or self.config["hidden_size"] // heads
        self.inv_freq = inverse_frequencies(self.config, self.head_dim)

    def forward(
        self, tokens: Sequence[int], *, first: int = 0, rows: slice = slice(None), kv: str = "f32", ops: Any = None
    ) -> Any:
        """Logits [rows, vocab_size] of tokens at positions `first` and after, for the rows that are wanted."""
        ops = ops or sys.modules[__name__]
        layers = self.config["num_hidden_layers"]
        positions = np.arange(first, first + len(tokens))
        angles = (positions.astype(np.float32)[:, None] * self.inv_freq).astype(np.float64)
        every, wanted = np.arange(len(tokens)), np.arange(len(tokens))[rows]
        x = ops.embed(self.weights["model.embed_tokens.weight"], tokens)
        for layer in range(layers):
            # In the last layer only the rows that are wanted need anything but keys and values.
            x = self._layer(f"model.layers.{layer}", x, angles, wanted if layer == layers - 1 else every, kv, ops)
        x = ops.rms_norm(x, self.weights["model.norm.weight"], self.config["rms_norm_eps"])
        tied = self.config["tie_word_embeddings"]
        return ops.linear(x, self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"], None)

    def _layer(self, name: str, x: Any, angles: F64, rows: I64, kv: str, ops: Any) -> Any:
        eps, head_dim = self.config["rms_norm_eps"], self.head_dim

        def linear(part: str, x: Any) -> Any:
            return ops.linear(x, self.weights[f"{name}.{part}.weight"], self.weights.get(f"{name}.{part}.bias"))

        def heads(part: str, x: Any) -> Any:
            out = linear(f"self_attn.{part}", x)
            return out.reshape(out.shape[0], -1, head_dim)

        h = ops.rms_norm(x, self.weights[f"{name}.input_layernorm.weight"], eps)
        k = ops.round_kv(ops.rotate(heads("k_proj", h), angles), kv)
        v = ops.round_kv(heads("v_proj", h), kv)
        q = ops.rotate(heads("q_proj", h[rows]), angles[rows])
        attended = ops.attention(q, k, v, rows)
        x = ops.add(x[rows], linear("self_attn.o_proj", attended.reshape(len(rows), -1)))
        h = ops.rms_norm(x, self.weights[f"{name}.post_attention_layernorm.weight"], eps)
        gated = ops.silu_mul(linear("mlp.gate_proj", h), linear("mlp.up_proj", h))
        return ops.add(x, linear("mlp.down_proj", gated))


def embed(table: F64, tokens: Sequence[int]) -> F64:
    return table[np.asarray(tokens)]


def linear(x: F64, weight: F64, bias: F64 | None) -> F64:
    return x @ weight.T + (0 if bias is None else bias)


def add(x: F64, y: F64) -> F64:
    return x + y


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """weight * x / sqrt(mean(x^2) + eps) (arXiv 1910.07467)."""
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def rotate(x: F64, angles: F64) -> F64:
    """RoPE on x[n, heads, d], angles [n, d / 2]; dimension i turns with i + d / 2 (arXiv 2104.09864)."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def round_kv(x: F64, kv: str) -> F64:
    """x as a cache of type "f32" (taken as exact) or "bf16" (to nearest, ties to even) holds it."""
    if kv == "f32":
        return x
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def scores(q: F64, k: F64, rows: I64) -> F64:
    """[heads, queries, keys] of q[queries, heads, d], k[keys, kv_heads, d]; -inf for keys ahead of their query."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    out = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
    out[:, np.arange(len(k)) > rows[:, None]] = -np.inf
    return out


def softmax(x: F64) -> F64:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: F64, k: F64, v: F64, rows: I64) -> F64:
    """Causal grouped-query attention [queries, heads, d]; query i stands in row rows[i] of the keys."""
    v = np.repeat(v, q.shape[1] // v.shape[1], axis=1)
    return np.einsum("hqk,khd->qhd", softmax(scores(q, k, rows)), v)


def silu(x: F64) -> F64:
    return x / (1 + np.exp(-x))


def silu_mul(gate: F64, up: F64) -> F64:
    return silu(gate) * up


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> F32:
    """float32 [head_dim / 2]; every step in float32, as `transformers` takes it, powers correctly rounded."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    exponents = (np.arange(0, head_dim, 2) / head_dim).astype(np.float32)
    inv_freq = np.float32(1) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return inv_freq / np.float32(rope["factor"])
    if kind == "llama3":
        return np.array([_llama3(f, rope) for f in inv_freq], np.float32)
    return inv_freq


def _llama3(frequency: np.float32, rope: dict[str, Any]) -> np.float32:
    """One inverse frequency after Llama 3.1's scaling."""
    one, factor = np.float32(1), np.float32(rope["factor"])
    low, high = np.float32(rope["low_freq_factor"]), np.float32(rope["high_freq_factor"])
    context = np.float32(rope["original_max_position_embeddings"])
    wavelength = one / frequency * np.float32(2 * math.pi)
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return np.float32(frequency / factor)
    smooth = (one / wavelength * context - low) / (high - low)
    return np.float32((one - smooth) * frequency / factor + smooth * frequency)


def read_weights(path: Path) -> dict[str, F64]:
    """All tensors of a checkpoint by their canonical names."""
    weights: dict[str, F64] = {}
    for file in path.glob("*.safetensors"):
        weights |= read_safetensors(file)
    for file in path.glob("separated_weights/*.safetensors"):
        weights |= {_canonical(name, file.stem): tensor for name, tensor in read_safetensors(file).items()}
    return weights


def read_safetensors(path: Path) -> dict[str, F64]:
    raw = path.read_bytes()
    data = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:data])
    header.pop("__metadata__", None)
    return {name: _tensor(entry, raw, data) for name, entry in header.items()}


def _tensor(entry: dict[str, Any], raw: bytes, data: int) -> F64:
    begin, end = (data + offset for offset in entry["data_offsets"])
    if entry["dtype"] == "BF16":
        wide = np.frombuffer(raw[begin:end], np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64).reshape(entry["shape"])
    dtype = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
    return np.frombuffer(raw[begin:end], dtype).astype(np.float64).reshape(entry["shape"])


def _canonical(name: str, part: str) -> str:
    """The whole name of a tensor in the split layout, where files leave out some or all of their own prefix."""
    prefix = f"model.layers.{part[6:]}." if part.startswith("layers") else "" if part == "lm_head" else "model."
    if part in ("embed_tokens", "norm", "lm_head"):
        return f"{prefix}{part}.weight"
    return prefix + ".".join(name.split(".")[-3 if "_proj" in name else -2 :])
