"""OLMo 2 (arXiv 2501.00656), OLMo 3 (Ai2, 2025) and OLMoE (arXiv 2409.02060), with the defaults of their configuration
classes.

Norms come after attention and MLP, and queries and keys are normalised whole. OLMo 3 has windows in three layers of
four, and scales the rope of the others only. OLMoE has its norms where a Llama has them, and experts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.config import POST_NORMS, RopeConfig
from penstock.architectures.experts import ROUTER_KEYS, read_experts
from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING, RopeDefaults

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _olmo2(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return replace(config, norms=POST_NORMS, qk_norm="all", qkv_bias=bias, o_bias=bias)


def _olmo3(fields: Fields, config: ModelConfig) -> ModelConfig:
    types = layer_types(fields, config.num_hidden_layers, lambda layer: FULL if (layer + 1) % 4 == 0 else SLIDING)
    kinds = kinds_of(types, window_of(fields, 4096), sliding="local")
    return replace(_olmo2(fields, config), layer_kinds=kinds, local_rope=RopeConfig(config.rope.theta))


def _olmoe(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    renormalize = fields.flag("norm_topk_prob", False)
    experts = read_experts(fields, ("num_experts", 64), 8, ("intermediate_size", 2048), renormalize=renormalize)
    return replace(config, qk_norm="all", qkv_bias=bias, o_bias=bias, experts=experts)


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    known_as="OLMo 2",
    sizes={
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 0,
        "max_position_embeddings": 2048,
    },
    bos_token_id=None,
    eos_token_id=50279,
    rms_norm_eps=1e-5,
    finish=_olmo2,
)
OLMO3 = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    known_as="OLMo 3",
    sizes=OLMO2.sizes,
    bos_token_id=None,
    eos_token_id=50279,
    rms_norm_eps=1e-5,
    rope=RopeDefaults(500_000.0),
    finish=_olmo3,
)
OLMOE = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    known_as="OLMoE-1B-7B",
    sizes={
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 0,
        "max_position_embeddings": 4096,
    },
    bos_token_id=None,
    eos_token_id=50279,
    rms_norm_eps=1e-5,
    finish=_olmoe,
    only_values={"clip_qkv": (None,)},
    ignored=ROUTER_KEYS,
)
