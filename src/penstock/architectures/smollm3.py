"""SmolLM3 (Hugging Face, 2025), with the defaults of SmolLM3Config: a Llama of which some layers have no rope."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.config import LayerKind
from penstock.architectures.family import Family, layer_types, window_of
from penstock.architectures.llama import with_biases
from penstock.architectures.rope_config import FULL, SLIDING, RopeDefaults

if TYPE_CHECKING:
    from penstock.architectures.config import ModelConfig
    from penstock.strict_json import Fields


def _finish(fields: Fields, config: ModelConfig) -> ModelConfig:
    layers = config.num_hidden_layers
    ropes = _has_rope(fields, layers)
    window = window_of(fields, None) if fields.flag("use_sliding_window", False) else 0
    fields.get("sliding_window")
    types = layer_types(fields, layers, lambda layer: SLIDING if window and not ropes[layer] else FULL)
    kinds = tuple(
        LayerKind(window if kind == SLIDING else 0, "main" if rope else "none")
        for kind, rope in zip(types, ropes, strict=True)
    )
    return with_biases(fields, replace(config, layer_kinds=kinds))


def _has_rope(fields: Fields, layers: int) -> list[bool]:
    """`no_rope_layers` has a 1 for each layer with rope; without it, every so many layers one has none."""
    interval, given = fields.size("no_rope_layer_interval", 4), fields.get("no_rope_layers")
    if given is None:
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(given, list) or len(given) != layers or any(rope not in (0, 1) for rope in given):
        fields.fail("no_rope_layers", f"a list of {layers}, each 0 or 1")
    return [bool(rope) for rope in given]


SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    known_as="SmolLM3",
    sizes={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    },
    bos_token_id=128000,
    eos_token_id=128001,
    rope=RopeDefaults(2_000_000.0),
    tie_word_embeddings=True,
    finish=_finish,
)
