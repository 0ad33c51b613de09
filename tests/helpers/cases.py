"""The checkpoints that the whole model is tested with: what varies between models, one case each, all tiny."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import penstock
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock.text.tokenizer import Tokenizer

DEMO = Path(penstock.__file__).parent / "data" / "demo"

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@dataclass(frozen=True)
class Case:
    """A tiny random checkpoint: changes to `tiny_config`, the weights' type, the layout of the files."""

    config: dict[str, Any]
    dtype: str = "BF16"
    files: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path, seed: int = 0) -> Path:
        config = {key: value for key, value in tiny_config(**self.config).items() if value is not None}
        write_checkpoint(path, config, dtype=self.dtype, seed=seed, **self.files)
        return path


def _attention(heads: int, kv_heads: int, head_dim: int = 8) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "attention_bias": None,
    "mlp_bias": None,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": 128,
    "max_window_layers": 1,
}

CASES = {
    "gqa-1": Case(_attention(4, 4)),
    "gqa-4": Case(_attention(8, 2, 16)),
    "gqa-8": Case(_attention(8, 1)),
    "tied": Case({"tie_word_embeddings": True}),
    "odd-sizes": Case({"hidden_size": 40, "intermediate_size": 52, "vocab_size": 131} | _attention(4, 1, 10)),
    "odder-sizes": Case({"hidden_size": 21, "intermediate_size": 37, "vocab_size": 61} | _attention(3, 3, 6)),
    "rope-linear": Case({"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "rope-llama3": Case(
        {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "max_position_embeddings": 131072} | _attention(2, 1, 32)
    ),
    "rope-parameters": Case(
        {
            "rope_parameters": LLAMA3
            | {"rope_theta": 500000.0, "original_max_position_embeddings": 64, "factor": 32.0},
            "rope_theta": None,
            "max_position_embeddings": 131072,
        }
        | _attention(2, 2, 32)
    ),
    "biases": Case({"attention_bias": True, "mlp_bias": True}),
    "attention-bias": Case({"attention_bias": True, "hidden_size": 36}),
    "qwen2": Case(QWEN2 | _attention(4, 2, 10)),
    "qwen2-tied": Case(QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "f16": Case({}, "F16"),
    "f32": Case({"hidden_size": 40} | _attention(4, 2, 10), "F32"),
    "shards": Case({}, files={"layout": "numbered"}),
    "indexed": Case({"tie_word_embeddings": True}, files={"layout": "indexed", "shards": 5}),
    "split": Case({"num_hidden_layers": 3}, files={"layout": "split"}),
    "split-bare": Case({"attention_bias": True}, files={"layout": "split", "names": "bare"}),
}


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, count)]


def demo_tokens(count: int) -> list[int]:
    """Token ids of a text that the demo model's tokenizer knows how to read."""
    tokenizer = Tokenizer.open(DEMO)
    assert tokenizer is not None
    text = "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, x):\n        self.items.append(x)\n"
    return tokenizer.encode(text * (1 + count // 20))[:count]
