"""Mixtral 8x7B and 8x22B (arXiv 2401.04088), with the defaults of MixtralConfig: a Mistral with eight MLPs a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.experts import ROUTER_KEYS, read_experts
from penstock.architectures.family import Family, kinds_of, window_of
from penstock.architectures.mistral import MISTRAL
from penstock.architectures.rope_config import FULL, SLIDING, RopeDefaults

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    window = window_of(fields, None)
    kinds = kinds_of([SLIDING if window else FULL] * config.num_hidden_layers, window)
    experts = read_experts(fields, ("num_local_experts", 8), 2, ("intermediate_size", 14336), renormalize=True)
    return replace(config, layer_kinds=kinds, experts=experts)


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    known_as="Mixtral 8x7B, 8x22B",
    sizes=MISTRAL.sizes,
    bos_token_id=1,
    eos_token_id=2,
    rms_norm_eps=1e-5,
    rope=RopeDefaults(1_000_000.0),
    finish=_finish,
    ignored=ROUTER_KEYS,
)
