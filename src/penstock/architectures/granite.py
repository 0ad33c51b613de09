"""Granite 3 and the dense models of Granite 4 (IBM, 2024 and 2025), with the defaults of their configuration classes.

A Llama with four multipliers. Those of Granite 4 call their MLP a shared one, beside experts of which they have none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.config import LayerKind
from penstock.architectures.family import Family
from penstock.architectures.llama import with_biases
from penstock.errors import UnsupportedError
from penstock.strict_json import shown

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _granite(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        with_biases(fields, config),
        embedding_multiplier=fields.positive("embedding_multiplier", 1.0),
        attention_multiplier=fields.positive("attention_multiplier", 1.0),
        residual_multiplier=fields.positive("residual_multiplier", 1.0),
        logits_divisor=fields.positive("logits_scaling", 1.0),
    )


def _granite4(fields: Fields, config: ModelConfig) -> ModelConfig:
    _check_dense(fields)
    rope = fields.get("position_embedding_type") == "rope"
    kinds = () if rope else (LayerKind(rope="none"),) * config.num_hidden_layers
    inner = fields.size("shared_intermediate_size", 1024)
    return replace(_granite(fields, config), intermediate_size=inner, fused_gate_up=True, layer_kinds=kinds)


def _check_dense(fields: Fields) -> None:
    types = fields.get("layer_types", fields.get("layers_block_type"))
    if not isinstance(types, list) or any(kind not in ("attention", "full_attention") for kind in types):
        problem = f"{fields.source}: this Granite has Mamba layers (layer_types is {shown(types)})"
        raise UnsupportedError(problem, "Penstock runs the dense ones, like granite-4.0-micro, and Granite 3.")
    if fields.optional_count("num_local_experts", 8):
        problem = f"{fields.source}: this Granite is a mixture of experts"
        raise UnsupportedError(problem, "Penstock runs the dense ones, like granite-4.0-micro, and Granite 3.")


_OF_OTHERS = frozenset(
    [
        "init_method",
        "embedding_init_method",
        "router_aux_loss_coef",
        "output_router_logits",
        "num_experts_per_tok",
        "mamba_chunk_size",
        "mamba_conv_bias",
        "mamba_d_conv",
        "mamba_d_head",
        "mamba_d_state",
        "mamba_expand",
        "mamba_n_groups",
        "mamba_n_heads",
        "mamba_proj_bias",
    ]
)
"""Keys of the hybrid ones and those with experts."""

_SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 0,
    "max_position_embeddings": 2048,
}
GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    known_as="Granite 3",
    sizes=_SIZES,
    bos_token_id=1,
    eos_token_id=2,
    finish=_granite,
)
GRANITE4 = Family(
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    known_as="the dense ones of Granite 4",
    sizes=_SIZES,
    bos_token_id=1,
    eos_token_id=2,
    finish=_granite4,
    only_values={"normalization_function": ("rmsnorm",)},
    ignored=_OF_OTHERS,
)
