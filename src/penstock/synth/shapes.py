"""Shapes of published models: their config.json, by name; here those of Llamas.

Sources, as stored in public copies: config.json of meta-llama/Llama-3.1-{8B,70B,405B}-Instruct (the 405B in its later
form with 8 key-value heads), meta-llama/Llama-3.2-{1B,3B}-Instruct and HuggingFaceTB/SmolLM2-{135M,360M,1.7B}-Instruct.
Sizes of the Llama 3 models are also in arXiv 2407.21783, table 3. The instruct models stop at more tokens than the base
models; everything else is the same. Llama-3.3-70B has the shape of Llama-3.1-70B.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from penstock.errors import UsageError
from penstock.synth.expert_shapes import EXPERT_SHAPES
from penstock.synth.family_shapes import FAMILY_SHAPES


def _llama(**sizes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **sizes,
    }


def _llama3(
    hidden: int, inner: int, layers: int, heads: int, *, rope_factor: float = 8.0, tied: bool = False
) -> dict[str, Any]:
    return _llama(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=hidden // heads,
        tie_word_embeddings=tied,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009],
    )


def _smollm2(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, rope_theta: float = 100000.0
) -> dict[str, Any]:
    return _llama(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rope_theta=rope_theta,
        rope_scaling=None,
        bos_token_id=1,
        eos_token_id=2,
    )


SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-3.1-8b": _llama3(4096, 14336, 32, 32),
        "llama-3.1-70b": _llama3(8192, 28672, 80, 64),
        "llama-3.1-405b": _llama3(16384, 53248, 126, 128),
        "llama-3.2-1b": _llama3(2048, 8192, 16, 32, rope_factor=32.0, tied=True),
        "llama-3.2-3b": _llama3(3072, 8192, 28, 24, rope_factor=32.0, tied=True),
        "llama-3.3-70b": _llama3(8192, 28672, 80, 64),
        "smollm2-135m": _smollm2(576, 1536, 30, 9, 3),
        "smollm2-360m": _smollm2(960, 2560, 32, 15, 5),
        "smollm2-1.7b": _smollm2(2048, 8192, 24, 32, 32, rope_theta=130000.0),
        **FAMILY_SHAPES,
        **EXPERT_SHAPES,
    }
)
"""The content of each shape's config.json, by the name that commands know it by."""


def shape_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """The config.json of the shape `name`, in upper or lower case, with only its first `layers` layers where given.

    Raises UsageError for a shape that is not known and for more layers than it has, or less than one.
    """
    shape = SHAPES.get(name.lower())
    if shape is None:
        raise UsageError(f"there is no shape named {name!r}", f"Choose one of {shape_names()}.")
    most = shape["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= most:
        raise UsageError(f"{name} cannot be cut to {layers} layers", f"Choose a number from 1 to {most}.")
    return {**shape, "num_hidden_layers": layers or most}


def shape_names() -> str:
    """All of them, for messages and help."""
    return ", ".join(SHAPES)
