"""The reference: a decoder's forward pass in float64, by the textbook, from the files of a checkpoint.

Only RoPE's angles are formed in float32, as `transformers` forms them, and keys and values are rounded to BF16 where
that is asked. `forward` takes its operations from a namespace: this module's are exact; those of error_bounds.py
carry along what float32 arithmetic may differ by.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from helpers.family_reading import Reading, frequencies, read, text_side

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Reference:
    """A checkpoint in float64."""

    def __init__(
        self, path: Path, context: int = 0, adapter: Mapping[str, tuple[F64, F64, float]] | None = None
    ) -> None:
        """`context`: positions that a sequence may have, where they are more than is usual; `adapter`: A, B and the
        factor of what is added to a module's product, by the module's name."""
        self.adapter = adapter or {}
        whole: dict[str, Any] = json.loads((path / "config.json").read_text())
        self.reading, self.config = read(whole), dict(text_side(whole))
        self.weights = read_weights(path)
        self.margin = math.inf
        """The least by which a row of any pass preferred its last expert to the next: below 1e-4, float32 may choose
        another, and then nothing can be compared."""
        self.frequencies = frequencies(whole, context)

    def forward(
        self, tokens: Sequence[int], *, first: int = 0, rows: slice = slice(None), kv: str = "f32", ops: Any = None
    ) -> Any:
        """Logits [rows, vocab_size] of tokens at positions `first` and after, for the rows that are wanted."""
        ops = ops or sys.modules[__name__]
        layers, reading = self.config["num_hidden_layers"], self.reading
        positions = np.arange(first, first + len(tokens))
        angles = {
            rope: ((positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64), float(np.float32(factor)))
            for rope, (inv_freq, factor) in self.frequencies.items()
        }
        every, wanted = np.arange(len(tokens)), np.arange(len(tokens))[rows]
        x = ops.embed(self.weights["model.embed_tokens.weight"], tokens)
        if reading.embedding != 1:
            x = ops.scale(x, times=float(np.float32(reading.embedding)))
        for layer in range(layers):
            # In the last layer only the rows that are wanted need anything but keys and values.
            x = self._layer(layer, x, angles, wanted if layer == layers - 1 else every, kv, ops)
        x = ops.rms_norm(x, self._norm("model.norm"), self.config["rms_norm_eps"])
        tied = self.config["tie_word_embeddings"]
        logits = ops.linear(x, self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"], None)
        if reading.logits_over != 1 or reading.logits_cap:
            logits = ops.scale(logits, over=reading.logits_over, cap=reading.logits_cap)
        return logits

    def _norm(self, name: str) -> F64:
        return self.weights[f"{name}.weight"] + (1 if self.reading.one_more else 0)

    def _layer(self, index: int, x: Any, angles: Any, rows: I64, kv: str, ops: Any) -> Any:
        eps, reading, name = self.config["rms_norm_eps"], self.reading, f"model.layers.{index}"
        before, after, before_mlp, after_mlp = reading.norms
        rope = reading.ropes[index]

        def linear(part: str, x: Any) -> Any:
            y = ops.linear(x, self.weights[f"{name}.{part}.weight"], self.weights.get(f"{name}.{part}.bias"))
            if f"{name}.{part}" not in self.adapter:
                return y
            a, b, factor = self.adapter[f"{name}.{part}"]
            return ops.add(y, ops.scale(ops.linear(ops.linear(x, a, None), b, None), times=factor))

        def normed(norm: str | None, x: Any) -> Any:
            return x if norm is None else ops.rms_norm(x, self._norm(f"{name}.{norm}"), eps)

        def added(x: Any, y: Any) -> Any:
            return ops.add(x, y if reading.residual == 1 else ops.scale(y, times=float(np.float32(reading.residual))))

        def turned(x: Any, rows: I64) -> Any:
            if rope == "none":
                return x
            turns, factor = angles[rope]
            return ops.rotate(x, turns[rows], factor)

        every = np.arange(len(x))
        q, k, v = self._queries_keys_values(linear, normed(before, x))
        if reading.qk_norm:
            q, k = (self._normed_heads(f"{name}.self_attn.{part}_norm", y, ops) for part, y in (("q", q), ("k", k)))
        k, v = ops.round_kv(turned(k, every), kv), ops.round_kv(v, kv)
        q = turned(q[rows], rows)
        cap, window = reading.score_cap, reading.windows[index]
        attended = ops.attention(q, k, v, rows, float(np.float32(reading.scale)), window, cap)
        x = added(x[rows], normed(after, linear("self_attn.o_proj", attended.reshape(len(rows), -1))))
        h = normed(before_mlp, x)
        if reading.mixtures[index]:
            return added(x, normed(after_mlp, self._mixture(f"{name}.{reading.expert_names[0]}", linear, h, ops)))
        gate, up, gate_up, down = reading.mlp
        parts = np.split(linear(gate_up, h), 2, axis=-1) if reading.fused_gate_up else (linear(gate, h), linear(up, h))
        return added(x, normed(after_mlp, linear(down, ops.gated(*parts, reading.gelu))))

    def _mixture(self, name: str, linear: Any, h: Any, ops: Any) -> Any:
        """What the experts of a layer make of rows, each of those that it goes to (arXiv 2101.03961)."""
        reading = self.reading
        within, gate, up, down = reading.expert_names

        def mlp(name: str, h: Any) -> Any:
            return linear(f"{name}.{down}", ops.gated(linear(f"{name}.{gate}", h), linear(f"{name}.{up}", h), False))

        bias = self.weights.get(f"{name}.gate.e_score_correction_bias")
        weights, margin = ops.route(linear(f"{within}.gate", h), bias, reading)
        self.margin = min(self.margin, margin)
        y = np.zeros_like(h)
        for expert in range(reading.experts):
            rows = np.flatnonzero(weights[:, expert])
            if len(rows):
                out = mlp(f"{within}.experts.{expert}", h[rows])
                y[rows] = ops.add(y[rows], ops.times(out, weights[rows, expert]))
        if reading.shared:
            shared = mlp(reading.shared, h)
            if reading.shared_gate:
                shared = ops.times(shared, ops.sigmoid(linear(f"{reading.shared}_gate", h))[:, 0])
            y = ops.add(y, shared)
        return y

    def _queries_keys_values(self, linear: Any, h: Any) -> list[Any]:
        """Each [n, heads, head_dim]."""
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        d = self.reading.head_dim
        if self.reading.fused_qkv:
            parts = np.split(linear("self_attn.qkv_proj", h), [heads * d, (heads + kv_heads) * d], axis=-1)
        else:
            parts = [linear(f"self_attn.{part}_proj", h) for part in "qkv"]
        return [part.reshape(len(h), -1, d) for part in parts]

    def _normed_heads(self, name: str, x: Any, ops: Any) -> Any:
        """x[n, heads, d] normalised head by head, or all of a row's together."""
        flat = x.reshape(len(x), -1) if self.reading.qk_norm == "all" else x.reshape(-1, x.shape[-1])
        return ops.rms_norm(flat, self._norm(name), self.config["rms_norm_eps"]).reshape(x.shape)


def embed(table: F64, tokens: Sequence[int]) -> F64:
    return table[np.asarray(tokens)]


def linear(x: F64, weight: F64, bias: F64 | None) -> F64:
    return x @ weight.T + (0 if bias is None else bias)


def add(x: F64, y: F64) -> F64:
    return x + y


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """weight * x / sqrt(mean(x^2) + eps) (arXiv 1910.07467)."""
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def rotate(x: F64, angles: F64, factor: float = 1.0) -> F64:
    """RoPE on the first dimensions of x[n, heads, d], angles [n, half]; dimension i turns with i + half (arXiv
    2104.09864); what turns is multiplied by `factor`."""
    cos, sin = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
    half = angles.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], axis=-1)


def round_kv(x: F64, kv: str) -> F64:
    """x as a cache of type "f32" (taken as exact) or "bf16" (to nearest, ties to even) holds it."""
    if kv == "f32":
        return x
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def scores(q: F64, k: F64, scale: float) -> F64:
    """[heads, queries, keys] of q[queries, heads, d], k[keys, kv_heads, d]."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    out: F64 = np.einsum("qhd,khd->hqk", q, k) * scale
    return out


def unseen(rows: I64, keys: int, window: int) -> npt.NDArray[np.bool_]:
    """[queries, keys]: keys ahead of their query, and those that its window has passed."""
    key, query = np.arange(keys), rows[:, None]
    return (key > query) | (key <= query - window) if window else key > query


def softmax(x: F64) -> F64:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: F64, k: F64, v: F64, rows: I64, scale: float, window: int = 0, cap: float = 0) -> F64:
    """Causal grouped-query attention [queries, heads, d]; query i stands in row rows[i] of the keys."""
    v = np.repeat(v, q.shape[1] // v.shape[1], axis=1)
    s = capped(scores(q, k, scale), cap)
    s[:, unseen(rows, len(k), window)] = -np.inf
    return np.einsum("hqk,khd->qhd", softmax(s), v)


def capped(x: F64, cap: float) -> F64:
    return cap * np.tanh(x / cap) if cap else x


def scale(x: F64, times: float = 1.0, over: float = 1.0, cap: float = 0.0) -> F64:
    return capped(x * times / over, cap)


def silu(x: F64) -> F64:
    return x / (1 + np.exp(-x))


def gelu(x: F64) -> F64:
    """With tanh (arXiv 1606.08415)."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def times(x: F64, factors: F64) -> F64:
    """Row by row."""
    return x * factors[:, None]


def route(logits: F64, bias: F64 | None, reading: Reading) -> tuple[F64, float]:
    """The weight of each expert for each row [n, experts], 0 of those that it does not go to; and the least margin of
    a choice, as logits have them."""
    scores = sigmoid(logits) if reading.sigmoid else softmax(logits)
    choice = scores + bias if bias is not None else scores if reading.sigmoid else logits
    groups, kept = reading.groups
    if kept < groups:
        by_group = choice.reshape(len(choice), groups, -1)
        sums = np.sort(by_group, axis=-1)[..., -2:].sum(axis=-1)
        out = sums < np.sort(sums, axis=-1)[:, -kept, None]
        choice = np.where(out[..., None], -np.inf, by_group).reshape(choice.shape)
    ranked = np.sort(choice, axis=-1)[:, ::-1]
    chosen = choice >= ranked[:, reading.chosen - 1, None]
    margin = (
        math.inf
        if reading.chosen == reading.experts
        else (ranked[:, reading.chosen - 1] - ranked[:, reading.chosen]).min()
    )
    weights = np.where(chosen, scores, 0)
    if reading.renormalized:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights * reading.scaling, float(margin)


def gated(gate: F64, up: F64, with_gelu: bool) -> F64:
    return (gelu(gate) if with_gelu else silu(gate)) * up


def read_weights(path: Path) -> dict[str, F64]:
    """All tensors of a checkpoint by their canonical names."""
    weights: dict[str, F64] = {}
    for file in path.glob("*.safetensors"):
        weights |= {name.removeprefix("language_model."): tensor for name, tensor in read_safetensors(file).items()}
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
