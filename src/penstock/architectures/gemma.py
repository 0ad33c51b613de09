"""Gemma 2 (arXiv 2408.00118) and the text side of Gemma 3 (arXiv 2503.19786), with the defaults of their
configuration classes.

Norms stand before and after attention and MLP, their weights short of 1; embeddings are multiplied by the root of
their length, rounded to BF16 as the published models were trained and are run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.config import SANDWICH_NORMS
from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING, RopeDefaults, read_local_rope
from penstock.errors import UnsupportedError

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _rounded_to_bf16(value: float) -> float:
    """To nearest, ties to even."""
    bits = int(np.float32(value).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))


def _gemma(fields: Fields, config: ModelConfig) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        qkv_bias=bias,
        o_bias=bias,
        norms=SANDWICH_NORMS,
        norm_offset=1.0,
        activation="gelu_tanh",
        embedding_multiplier=_rounded_to_bf16(math.sqrt(config.hidden_size)),
        attention_multiplier=1 / math.sqrt(fields.positive("query_pre_attn_scalar", 256)),
    )


def _cap(fields: Fields, key: str, default: float | None) -> float:
    return 0.0 if fields.get(key, default) is None else fields.positive(key, default)


def _gemma2(fields: Fields, config: ModelConfig) -> ModelConfig:
    types = layer_types(fields, config.num_hidden_layers, lambda layer: FULL if layer % 2 else SLIDING)
    return replace(
        _gemma(fields, config),
        attention_softcap=_cap(fields, "attn_logit_softcapping", 50.0),
        logits_softcap=_cap(fields, "final_logit_softcapping", 30.0),
        layer_kinds=kinds_of(types, window_of(fields, 4096)),
    )


def _gemma3(fields: Fields, config: ModelConfig) -> ModelConfig:
    if fields.get("use_bidirectional_attention"):
        problem = f"{fields.source}: this Gemma sees what follows a token (use_bidirectional_attention)"
        raise UnsupportedError(problem, "Penstock runs models that write; this one makes embeddings.")
    every = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    types = layer_types(fields, config.num_hidden_layers, lambda layer: FULL if (layer + 1) % every == 0 else SLIDING)
    return replace(
        _gemma(fields, config),
        qk_norm="head",
        attention_softcap=_cap(fields, "attn_logit_softcapping", None),
        logits_softcap=_cap(fields, "final_logit_softcapping", None),
        layer_kinds=kinds_of(types, window_of(fields, 4096), sliding="local"),
        local_rope=read_local_rope(fields, 10_000.0),
    )


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    known_as="Gemma 2",
    sizes={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    bos_token_id=2,
    eos_token_id=1,
    tie_word_embeddings=True,
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    finish=_gemma2,
    only_values={"use_bidirectional_attention": (None, False)},
    ignored=frozenset({"cache_implementation", "hidden_act"}),
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    known_as="Gemma 3",
    sizes={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },
    bos_token_id=2,
    eos_token_id=1,
    rope=RopeDefaults(1_000_000.0),
    tie_word_embeddings=True,
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    finish=_gemma3,
    ignored=frozenset({"cache_implementation", "hidden_act"}),
)
