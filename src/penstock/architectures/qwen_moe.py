"""Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671), Qwen3-MoE (arXiv 2505.09388), with the defaults of their configuration
classes.

A Qwen of the same age, but for its MLPs. Qwen2's have an expert beside them that all rows go through, weighed by a
sigmoid of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.experts import ROUTER_KEYS, dense_layers, read_experts
from penstock.architectures.family import Family, kinds_of, layer_types
from penstock.architectures.qwen import used_window
from penstock.architectures.rope_config import FULL, SLIDING

if TYPE_CHECKING:
    from penstock.architectures.config import ExpertsConfig, LayerKind, ModelConfig
    from penstock.strict_json import Fields


def _experts(fields: Fields, layers: int, count: int, per_token: int, inner: int) -> ExpertsConfig:
    experts = read_experts(
        fields,
        ("num_experts", count),
        per_token,
        ("moe_intermediate_size", inner),
        renormalize=fields.flag("norm_topk_prob", False),
    )
    return replace(experts, dense_layers=dense_layers(fields, layers))


def _qwen2_kinds(fields: Fields, config: ModelConfig) -> tuple[LayerKind, ...]:
    window, last = used_window(fields), fields.optional_count("max_window_layers", 28) or 0
    types = layer_types(
        fields,
        config.num_hidden_layers,
        lambda layer: SLIDING if window and layer < last and layer % 2 == 0 else FULL,
    )
    return kinds_of(types, window)


def _qwen2_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    experts = replace(
        _experts(fields, config.num_hidden_layers, 60, 4, 1408),
        shared_size=fields.size("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    bias = fields.flag("qkv_bias", True)
    return replace(config, qkv_bias=bias, layer_kinds=_qwen2_kinds(fields, config), experts=experts)


def _qwen3_moe(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias, window = fields.flag("attention_bias", False), used_window(fields)
    kinds = kinds_of([SLIDING if window else FULL] * config.num_hidden_layers, window)
    experts = _experts(fields, config.num_hidden_layers, 128, 8, 768)
    return replace(config, qkv_bias=bias, o_bias=bias, qk_norm="head", layer_kinds=kinds, experts=experts)


_SIZES = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "max_position_embeddings": 32768,
}

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    known_as="Qwen1.5-MoE, Qwen2-57B-A14B",
    sizes=_SIZES | {"intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16},
    bos_token_id=None,
    eos_token_id=None,
    finish=_qwen2_moe,
    ignored=ROUTER_KEYS,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    known_as="Qwen3-30B-A3B, Qwen3-Coder-30B-A3B, Qwen3-235B-A22B",
    sizes=_SIZES | {"intermediate_size": 6144, "num_attention_heads": 32, "num_key_value_heads": 4},
    bos_token_id=None,
    eos_token_id=None,
    finish=_qwen3_moe,
    ignored=ROUTER_KEYS | {"max_window_layers"},
)
