"""GLM-4.5 and 4.6 (arXiv 2508.06471), with the defaults of Glm4MoeConfig.

Half of each head turns. Experts are chosen by sigmoids and a bias that training balanced, and weighed without it; one
more is for all rows; the first layers have plain MLPs. The layers that predict further tokens, which files have behind
the others, are passed over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.experts import ROUTER_KEYS, read_experts
from penstock.architectures.family import Family
from penstock.architectures.rope_config import RopeDefaults

if TYPE_CHECKING:
    from penstock.architectures.config import ExpertsConfig, ModelConfig
    from penstock.strict_json import Fields


def _experts(fields: Fields, layers: int) -> ExpertsConfig:
    experts = read_experts(
        fields,
        ("n_routed_experts", 128),
        8,
        ("moe_intermediate_size", 1408),
        renormalize=fields.flag("norm_topk_prob", True),
    )
    groups, kept = fields.size("n_group", 1), fields.size("topk_group", 1)
    if experts.count % groups:
        fields.fail("n_group", f"a divisor of n_routed_experts, {experts.count}")
    if groups > 1 and experts.count < 2 * groups:
        fields.fail("n_group", "a number of groups of two experts or more")
    if kept > groups or experts.per_token > experts.count // groups * kept:
        fields.fail("topk_group", f"enough of {groups} groups for {experts.per_token} experts")
    return replace(
        experts,
        sigmoid=True,
        scaling=fields.positive("routed_scaling_factor", 1.0),
        groups=groups,
        kept_groups=kept,
        choice_bias=True,
        shared_size=experts.intermediate_size * fields.size("n_shared_experts", 1),
        dense_layers=tuple(range(min(layers, fields.optional_count("first_k_dense_replace", 1) or 0))),
    )


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    return replace(
        config,
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm="head" if fields.flag("use_qk_norm", False) else "none",
        experts=_experts(fields, config.num_hidden_layers),
    )


GLM4_MOE = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    known_as="GLM-4.5-Air, GLM-4.5, GLM-4.6",
    sizes={
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    bos_token_id=None,
    eos_token_id=None,
    rms_norm_eps=1e-5,
    rope=RopeDefaults(partial=True, share=0.5),
    finish=_finish,
    ignored=ROUTER_KEYS | {"num_nextn_predict_layers", "num_mtp_layers"},
)
