"""EXAONE 4 (arXiv 2507.11407), with the defaults of Exaone4Config.

Norms come after attention and MLP, and queries and keys are normalised head by head. With a window, layers that see
everything have no rope.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.config import POST_NORMS
from penstock.architectures.family import Family, kinds_of, layer_types, window_of
from penstock.architectures.rope_config import FULL, SLIDING

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    window, layers = window_of(fields, 4096), config.num_hidden_layers
    types = layer_types(fields, layers, _usual(fields) if window else lambda layer: FULL)
    kinds = kinds_of(types, window, full="none" if window else "main")
    return replace(config, norms=POST_NORMS, qk_norm="head", layer_kinds=kinds)


def _usual(fields: Fields) -> Callable[[int], str]:
    """By `sliding_window_pattern`: a number, of which every multiple sees everything, or letters L and G in turn."""
    pattern = fields.get("sliding_window_pattern", 4)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return lambda layer: FULL if pattern[layer % len(pattern)] == "G" else SLIDING
    every = fields.size("sliding_window_pattern", 4)
    return lambda layer: SLIDING if (layer + 1) % every else FULL


EXAONE4 = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    known_as="EXAONE 4",
    sizes={
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
    },
    bos_token_id=0,
    eos_token_id=2,
    rms_norm_eps=1e-5,
    finish=_finish,
)
