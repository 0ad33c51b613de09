"""Shapes of published models of families other than Llama: their config.json, by name.

Sizes are those of the config.json files that Alibaba (Qwen), Google (Gemma), Mistral AI, Microsoft (Phi), Ai2 (OLMo),
Hugging Face (SmolLM3) and IBM (Granite) publish; the tests hold their numbers of weights to the published ones.
Phi-4-mini's longrope factors are set to 1 here: they change no time.
"""

from __future__ import annotations

from typing import Any

Shape = dict[str, Any]
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _shape(model_type: str, architecture: str, sizes: tuple[int, ...], **more: Any) -> Shape:
    """`sizes`: hidden, inner, layers, heads, heads of keys and values."""
    common = {"torch_dtype": "bfloat16", "use_cache": True, "hidden_act": "silu", "rms_norm_eps": 1e-6}
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **common,
        **dict(zip(_SIZES, sizes, strict=True)),
        **more,
    }


def _qwen2(*sizes: int, vocab: int = 151936, tied: bool = False) -> Shape:
    return _shape(
        "qwen2",
        "Qwen2ForCausalLM",
        sizes,
        vocab_size=vocab,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _qwen3(*sizes: int, tied: bool = False) -> Shape:
    return _shape(
        "qwen3",
        "Qwen3ForCausalLM",
        sizes,
        vocab_size=151936,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        attention_bias=False,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _mistral(*sizes: int, vocab: int, positions: int, theta: float, head_dim: int = 128) -> Shape:
    return _shape(
        "mistral",
        "MistralForCausalLM",
        sizes,
        rms_norm_eps=1e-5,
        vocab_size=vocab,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rope_theta=theta,
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def _gemma(model_type: str, architecture: str, sizes: tuple[int, ...], **more: Any) -> Shape:
    shape = _shape(
        model_type,
        architecture,
        sizes,
        hidden_activation="gelu_pytorch_tanh",
        head_dim=256,
        query_pre_attn_scalar=256,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
    )
    del shape["hidden_act"]
    return shape | more


def _gemma2(*sizes: int, **more: Any) -> Shape:
    more = {"vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096} | more
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return _gemma("gemma2", "Gemma2ForCausalLM", sizes, **more, **caps)


def _gemma3(*sizes: int, window: int = 1024, **more: Any) -> Shape:
    scaling = {"rope_type": "linear", "factor": 8.0} if window == 1024 else None
    positions = {"max_position_embeddings": 131072, "vocab_size": 262208} if scaling else {}
    return _gemma(
        "gemma3_text",
        "Gemma3ForCausalLM",
        sizes,
        **{"max_position_embeddings": 32768, "vocab_size": 262144} | positions | more,
        sliding_window=window,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling=scaling,
    )


def _phi4(*sizes: int, **more: Any) -> Shape:
    return _shape(
        "phi3",
        "Phi3ForCausalLM",
        sizes,
        rms_norm_eps=1e-5,
        attention_bias=False,
        **more,
    )


def _olmo2(*sizes: int) -> Shape:
    return _shape(
        "olmo2",
        "Olmo2ForCausalLM",
        sizes,
        vocab_size=100352,
        max_position_embeddings=4096,
        rope_theta=5e5,
        attention_bias=False,
        tie_word_embeddings=False,
        eos_token_id=100257,
    )


def _olmo3(*sizes: int) -> Shape:
    return _olmo2(*sizes) | {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "vocab_size": 100278,
        "max_position_embeddings": 65536,
        "sliding_window": 4096,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 8192,
        },
    }


def _granite(*sizes: int, scores: float, logits: float) -> Shape:
    return _shape(
        "granite",
        "GraniteForCausalLM",
        sizes,
        rms_norm_eps=1e-5,
        vocab_size=49159,
        max_position_embeddings=131072,
        rope_theta=1e7,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=scores,
        logits_scaling=logits,
        bos_token_id=0,
        eos_token_id=0,
    )


_PHI4_MINI = {
    "vocab_size": 200064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48},
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "bos_token_id": 199999,
    "eos_token_id": 199999,
}

FAMILY_SHAPES: dict[str, Shape] = {
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, tied=True),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, tied=True),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, vocab=152064),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, vocab=152064),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, vocab=152064),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, vocab=152064),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
    "mistral-7b": _mistral(4096, 14336, 32, 32, 8, vocab=32768, positions=32768, theta=1e6),
    "mistral-nemo": _mistral(5120, 14336, 40, 32, 8, vocab=131072, positions=131072, theta=1e6),
    "mistral-small": _mistral(5120, 32768, 40, 32, 8, vocab=131072, positions=32768, theta=1e8),
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144),
    "gemma-3-270m": _gemma3(640, 2048, 18, 4, 1, window=512),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, window=512),
    "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4),
    "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8),
    "gemma-3-27b": _gemma3(5376, 21504, 62, 32, 16, head_dim=128, query_pre_attn_scalar=168),
    "phi-4": _phi4(
        5120,
        17920,
        40,
        40,
        10,
        vocab_size=100352,
        max_position_embeddings=16384,
        rope_theta=250000.0,
        tie_word_embeddings=False,
        bos_token_id=100257,
        eos_token_id=100265,
    ),
    "phi-4-mini": _phi4(3072, 8192, 32, 24, 8, **_PHI4_MINI),
    "olmo-2-1b": _olmo2(2048, 8192, 16, 16, 16),
    "olmo-2-7b": _olmo2(4096, 11008, 32, 32, 32),
    "olmo-2-13b": _olmo2(5120, 13824, 40, 40, 40),
    "olmo-2-32b": _olmo2(5120, 27648, 64, 40, 8),
    "olmo-3-7b": _olmo3(4096, 11008, 32, 32, 32),
    "olmo-3-32b": _olmo3(5120, 27648, 64, 40, 8),
    "smollm3-3b": _shape(
        "smollm3",
        "SmolLM3ForCausalLM",
        (2048, 11008, 36, 16, 4),
        vocab_size=128256,
        max_position_embeddings=65536,
        rope_theta=5e6,
        no_rope_layer_interval=4,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=128000,
        eos_token_id=128012,
    ),
    "granite-3.3-2b": _granite(2048, 8192, 40, 32, 8, scores=0.015625, logits=8.0),
    "granite-3.3-8b": _granite(4096, 12800, 40, 32, 8, scores=0.0078125, logits=16.0),
}
