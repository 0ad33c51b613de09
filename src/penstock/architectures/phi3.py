"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (arXiv 2404.14219, 2412.08905, 2503.01743), with the defaults of Phi3Config.

A Llama whose products for queries, keys and values are one matrix, as are gate and up. Those for long contexts have
longrope; Phi-4-mini turns three quarters of a head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING, RopeDefaults

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    window = window_of(fields, None)
    if window >= config.max_position_embeddings:
        window = 0
    types = layer_types(fields, config.num_hidden_layers, lambda layer: SLIDING if window else FULL)
    return replace(config, fused_qkv=True, fused_gate_up=True, layer_kinds=kinds_of(types, window))


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    known_as="Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    sizes={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 0,
        "max_position_embeddings": 4096,
    },
    bos_token_id=1,
    eos_token_id=32000,
    rms_norm_eps=1e-5,
    rope=RopeDefaults(partial=True, longrope=True),
    finish=_finish,
    only_values={"attention_bias": (False,)},
    ignored=frozenset({"auto_map", "embd_pdrop", "resid_pdrop", "interpolate_factor", "lm_head_bias"}),
)
