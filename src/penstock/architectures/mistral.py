"""Mistral 7B, Nemo and Small (arXiv 2310.06825), with the defaults of MistralConfig."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    window = window_of(fields, 4096)
    types = layer_types(fields, config.num_hidden_layers, lambda layer: SLIDING if window else FULL)
    return replace(config, layer_kinds=kinds_of(types, window))


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    known_as="Mistral 7B, Nemo, Small",
    sizes={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    bos_token_id=1,
    eos_token_id=2,
    finish=_finish,
)
