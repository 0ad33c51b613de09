"""Qwen2, Qwen2.5, QwQ and R1-Distill-Qwen (arXiv 2407.10671), with the defaults of Qwen2Config.

A Llama whose products for queries, keys and values have biases. The window that its config names counts only where
`use_sliding_window` is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.architectures.family import Biases, Family
from penstock.errors import UnsupportedError
from penstock.strict_json import shown

if TYPE_CHECKING:
    from penstock.strict_json import Fields

FULL = "full_attention"


def _biases(fields: Fields) -> Biases:
    _check_layer_types(fields)
    return Biases(qkv=True, o=False, mlp=False)


def _check_layer_types(fields: Fields) -> None:
    """Raise UnsupportedError where a layer attends to less than everything before it."""
    types = fields.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(kind == FULL for kind in types)):
        problem = f"{fields.source}: layer_types is {shown(types)}"
        raise UnsupportedError(problem, f"Penstock runs only models whose layers are all of {FULL!r}.")


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    known_as="Qwen2, Qwen2.5, QwQ, R1-Distill-Qwen",
    biases=_biases,
    sizes={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    bos_token_id=None,
    eos_token_id=None,
    only_values={"use_sliding_window": (False, None)},
    ignored=frozenset({"sliding_window", "max_window_layers"}),
)
