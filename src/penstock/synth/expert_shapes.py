"""Shapes of published mixtures of experts: their config.json, by name.

Sizes are those of the config.json files that Alibaba (Qwen), Ai2 (OLMoE), Mistral AI and Zhipu AI (GLM) publish; the
tests hold their numbers of weights to the published ones.
"""

from __future__ import annotations

from typing import Any

Shape = dict[str, Any]


def _shape(model_type: str, architecture: str, experts: Shape, **more: Any) -> Shape:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **more,
        **experts,
    }


def _qwen3(hidden: int, inner: int, layers: int, heads: int, expert: int) -> Shape:
    return _shape(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": expert,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1e6,
        attention_bias=False,
        bos_token_id=151643,
        eos_token_id=151645,
    )


EXPERT_SHAPES: dict[str, Shape] = {
    "qwen3-30b-a3b": _qwen3(2048, 6144, 48, 32, 768),
    "qwen3-235b-a22b": _qwen3(4096, 12288, 94, 64, 1536),
    "olmoe-1b-7b": _shape(
        "olmoe",
        "OlmoeForCausalLM",
        {"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
        rms_norm_eps=1e-5,
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        attention_bias=False,
        clip_qkv=None,
        pad_token_id=1,
        eos_token_id=50279,
    ),
    "mixtral-8x7b": _shape(
        "mixtral",
        "MixtralForCausalLM",
        {"num_local_experts": 8, "num_experts_per_tok": 2},
        rms_norm_eps=1e-5,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rope_theta=1e6,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen1.5-moe-a2.7b": _shape(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        },
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
        rope_theta=1e6,
        bos_token_id=151643,
        eos_token_id=151643,
    ),
    "glm-4.5-air": _shape(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1408,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 1,
        },
        rms_norm_eps=1e-5,
        vocab_size=151552,
        hidden_size=4096,
        intermediate_size=10944,
        num_hidden_layers=46,
        num_attention_heads=96,
        num_key_value_heads=8,
        head_dim=128,
        partial_rotary_factor=0.5,
        use_qk_norm=False,
        attention_bias=True,
        max_position_embeddings=131072,
        rope_theta=1e6,
        eos_token_id=[151329, 151336, 151338],
    ),
}
