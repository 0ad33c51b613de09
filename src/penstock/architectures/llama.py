"""Llama 2, Llama 3 and their fine-tunes (arXiv 2307.09288, 2407.21783), with the defaults of LlamaConfig."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.family import Family

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def with_biases(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Biases by `attention_bias`, for all four products, and `mlp_bias`."""
    attention = fields.flag("attention_bias", False)
    return replace(config, qkv_bias=attention, o_bias=attention, mlp_bias=fields.flag("mlp_bias", False))


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    known_as="Llama 2, Llama 3 and their fine-tunes",
    sizes={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 0,
        "max_position_embeddings": 2048,
    },
    bos_token_id=1,
    eos_token_id=2,
    finish=with_biases,
    only_values={"sliding_window": (None,)},
)
