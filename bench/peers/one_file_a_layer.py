"""The peer that anyone would write first: one safetensors file a layer, each loaded, run in PyTorch, and forgotten.

    separated_weights/{embed_tokens,layers0..N,norm,lm_head}.safetensors

Every file is loaded anew for every token with `load_file`, no reading ahead; the KV cache stays. Arithmetic is in
bfloat16 or float32, whichever multiplies a BF16 matrix faster on this CPU.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from timing import PROMPT, main
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu

FOLDER = "separated_weights"
Weights = dict[str, torch.Tensor]


def part_of(name: str) -> tuple[str, str]:
    """The file that holds a tensor, and the tensor's name in it: ("layers3", "mlp.up_proj.weight")."""
    words = name.removeprefix("model.").split(".")
    if words[0] == "layers":
        return f"layers{words[1]}", ".".join(words[2:])
    return words[0], ".".join(words[1:])


def prepare(model: Path, copy: Path) -> None:
    """Split the checkpoint, one part in memory at a time."""
    parts: dict[str, dict[str, tuple[Path, str]]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safetensors.safe_open(str(file), "pt") as source:
            for name in source.keys():  # noqa: SIM118 - no dictionary
                part, inner = part_of(name)
                parts.setdefault(part, {})[inner] = (file, name)
    (copy / FOLDER).mkdir(exist_ok=True)
    for part, tensors in parts.items():
        save_file({inner: read(*place) for inner, place in tensors.items()}, copy / FOLDER / f"{part}.safetensors")


def read(file: Path, name: str) -> torch.Tensor:
    with safetensors.safe_open(str(file), "pt") as source:
        tensor: torch.Tensor = source.get_tensor(name)
    return tensor


def inverse_frequencies(config: dict[str, Any], dim: int) -> torch.Tensor:
    """RoPE's frequencies, [dim / 2], scaled as llama3 has it where the config says so."""
    frequencies = config["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """RoPE on x, [heads, rows, dim], halves paired, by angles, [rows, dim / 2]."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def faster_dtype() -> torch.dtype:
    """bfloat16 or float32 for a product with a BF16 matrix that is loaded only to be used once."""
    weight = torch.randn(2048, 4096).bfloat16()

    def seconds(dtype: torch.dtype) -> float:
        x, times = torch.randn(1, 4096, dtype=dtype), []
        for _ in range(5):
            begin = time.perf_counter()
            linear(x, weight.to(dtype))
            times.append(time.perf_counter() - begin)
        return min(times)

    return min((torch.bfloat16, torch.float32), key=seconds)


class Model:
    """A Llama that holds nothing but its KV cache between tokens."""

    def __init__(self, model: Path, copy: Path) -> None:
        self.config = json.loads((model / "config.json").read_text())
        self.folder, self.dtype = copy / FOLDER, faster_dtype()
        self.heads, self.kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.frequencies = inverse_frequencies(self.config, self.dim)
        self.cache: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * self.config["num_hidden_layers"]
        self.position = 0

    def load(self, part: str) -> Weights:
        return {name: weight.to(self.dtype) for name, weight in load_file(self.folder / f"{part}.safetensors").items()}

    def forward(self, tokens: list[int]) -> int:
        """The likeliest token after `tokens`, which follow those of earlier calls."""
        # Rows first, type after: an embedding is not a product, and only these rows are needed.
        table = load_file(self.folder / "embed_tokens.safetensors")["weight"]
        x = embedding(torch.tensor(tokens), table).to(self.dtype)
        angles = torch.arange(self.position, self.position + len(tokens))[:, None] * self.frequencies
        for index in range(len(self.cache)):
            x = self.layer(index, x, angles)
        self.position += len(tokens)
        x = self.norm(x[-1:], self.load("norm")["weight"])
        head = "embed_tokens" if self.config.get("tie_word_embeddings") else "lm_head"
        return int(linear(x, self.load(head)["weight"]).argmax())

    def layer(self, index: int, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        w = self.load(f"layers{index}")
        x = x + self.attention(index, w, self.norm(x, w["input_layernorm.weight"]), angles)
        y = self.norm(x, w["post_attention_layernorm.weight"])
        y = silu(linear(y, w["mlp.gate_proj.weight"])) * linear(y, w["mlp.up_proj.weight"])
        return x + linear(y, w["mlp.down_proj.weight"])

    def attention(self, index: int, w: Weights, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        def heads(name: str) -> torch.Tensor:
            return linear(x, w[f"self_attn.{name}_proj.weight"]).unflatten(-1, (-1, self.dim)).transpose(0, 1)

        q, k, v = rotate(heads("q"), angles), rotate(heads("k"), angles), heads("v")
        if (before := self.cache[index]) is not None:
            k, v = torch.cat((before[0], k), dim=1), torch.cat((before[1], v), dim=1)
        self.cache[index] = k, v
        prompt = len(x) > 1
        y = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=prompt, enable_gqa=True)[0]
        return linear(y.transpose(0, 1).flatten(1), w["self_attn.o_proj.weight"])

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x.float(), x.shape[-1:], eps=self.config["rms_norm_eps"]).to(self.dtype) * weight


def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    torch.set_num_threads(threads)
    llama = Model(model, copy)

    @torch.inference_mode()
    def generate(count: int) -> Iterator[int]:
        tokens = list(PROMPT)
        for _ in range(count):
            tokens = [llama.forward(tokens)]
            yield tokens[0]

    return generate


if __name__ == "__main__":
    main("one-file-a-layer", f"torch {torch.__version__}", prepare, open_copy)
