"""Qwen2, Qwen2.5, QwQ and R1-Distill-Qwen (arXiv 2407.10671); Qwen3 (arXiv 2505.09388); with the defaults of their
configuration classes.

The window that a config names counts only where `use_sliding_window` is set, and then in the last layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING

if TYPE_CHECKING:
    from penstock.architectures.config import LayerKind, ModelConfig
    from penstock.strict_json import Fields


def used_window(fields: Fields) -> int:
    """The size of its windows, 0 where they are not asked for."""
    window = window_of(fields, 4096)
    return window if fields.get("use_sliding_window") is not None and fields.flag("use_sliding_window", False) else 0


def _layer_kinds(fields: Fields, config: ModelConfig) -> tuple[LayerKind, ...]:
    window, first = used_window(fields), fields.optional_count("max_window_layers", 28) or 0
    types = layer_types(fields, config.num_hidden_layers, lambda layer: SLIDING if window and layer >= first else FULL)
    return kinds_of(types, window)


def _qwen2(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(config, qkv_bias=True, layer_kinds=_layer_kinds(fields, config))


def _qwen3(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return replace(config, qkv_bias=bias, o_bias=bias, qk_norm="head", layer_kinds=_layer_kinds(fields, config))


_SIZES = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    known_as="Qwen2, Qwen2.5, QwQ, R1-Distill-Qwen",
    sizes=_SIZES,
    bos_token_id=None,
    eos_token_id=None,
    finish=_qwen2,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    known_as="Qwen3",
    sizes=_SIZES | {"head_dim": 128},
    bos_token_id=None,
    eos_token_id=None,
    finish=_qwen3,
)
