"""What the tensors of a decoder are called, and what files that leave out a part of the names mean by theirs."""

from __future__ import annotations

import re

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"
LAYER_MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Those of a layer in the order in which a pass needs them."""

EMBEDDING_PART, FINAL_NORM_PART, HEAD_PART = "embed_tokens", "norm", "lm_head"


def in_layer(layer: int, part: str) -> str:
    """The weight of a part of a layer."""
    return f"model.layers.{layer}.{part}.weight"


def bias_of(weight: str) -> str:
    """The bias that a matrix may have."""
    return f"{weight.removesuffix('.weight')}.bias"


def layer_part(layer: int) -> str:
    """What the file of one layer is called where a checkpoint is split by layers."""
    return f"layers{layer}"


def prefix_of_part(part: str) -> str:
    """What names may lack in the file of a part, where a checkpoint is split by layers."""
    if part == HEAD_PART:
        return f"{HEAD_PART}."
    layer = re.fullmatch(r"layers([0-9]+)", part)
    return f"model.layers.{layer[1]}." if layer else f"model.{part}."


def is_embedding(name: str) -> bool:
    """Whether it is the matrix of which a pass needs single rows."""
    return name.endswith(f"{EMBEDDING_PART}.weight")


def canonical_name(name: str, prefix: str) -> str:
    """The whole name of a tensor in a file whose names may lack `prefix`, or only its leading "model."."""
    if not prefix or name.startswith(("model.", "lm_head.")):
        return name
    if name.startswith(("layers.", "embed_tokens.", "norm.")):
        return f"model.{name}"
    return prefix + name


def is_derived(name: str) -> bool:
    """Whether some files hold a tensor that follows from the config: old inverse frequencies."""
    return name.endswith(".rotary_emb.inv_freq")
