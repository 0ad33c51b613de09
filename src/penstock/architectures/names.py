"""What the tensors of a decoder are called, and what files that leave out a part of the names mean by theirs."""

from __future__ import annotations

import re

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

Q, K, V, QKV, OUT = (f"self_attn.{part}_proj" for part in ("q", "k", "v", "qkv", "o"))
GATE, UP, GATE_UP, DOWN = (f"mlp.{part}_proj" for part in ("gate", "up", "gate_up", "down"))
ROUTER, SHARED_GATE = "mlp.gate", "mlp.shared_expert_gate"
SHARED = "mlp.shared_expert"
Q_NORM, K_NORM = "self_attn.q_norm", "self_attn.k_norm"

EMBEDDING_PART, FINAL_NORM_PART, HEAD_PART = "embed_tokens", "norm", "lm_head"


def in_layer(layer: int, part: str) -> str:
    """The weight of a part of a layer."""
    return f"model.layers.{layer}.{part}.weight"


def expert(number: int) -> str:
    """What the names of an expert's matrices begin with in a layer, in place of "mlp"."""
    return f"mlp.experts.{number}"


def is_expert(name: str) -> bool:
    """Whether a matrix is one of an expert's."""
    return ".mlp.experts." in name


_STACKED = re.compile(r"(.+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def stacked_name(layer: int, part: str) -> str:
    """Of a tensor that has the matrices of all experts of a layer, as transformers 5 keeps them in memory: each one's
    gate before its up ("gate_up_proj"), or "down_proj"."""
    return f"model.layers.{layer}.mlp.experts.{part}"


def stacked_part(name: str, shape: tuple[int, ...]) -> tuple[str, str] | None:
    """What the name of such a tensor begins with, and its part; None of any other."""
    match = _STACKED.fullmatch(name) if len(shape) == 3 else None
    return None if match is None else (match[1], match[2])


def mlp_parts(prefix: str = "mlp") -> tuple[str, str, str]:
    """Gate, up and down of an MLP: of a layer, of an expert, or the one that all rows share."""
    return f"{prefix}.gate_proj", f"{prefix}.up_proj", f"{prefix}.down_proj"


def choice_bias_of(layer: int) -> str:
    """What is added to the scores of a layer's experts where they are chosen."""
    return f"model.layers.{layer}.{ROUTER}.e_score_correction_bias"


def is_norm(name: str) -> bool:
    """Whether a vector is the weight of a norm."""
    return name.endswith("norm.weight")


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


_TEXT_SIDE = ("model.language_model.", "language_model.")
"""How names begin in checkpoints of models that see pictures, too."""
_OTHER_NAMES = {
    "shared_mlp.input_linear.": f"{GATE_UP}.",
    "shared_mlp.output_linear.": f"{DOWN}.",
    "mlp.shared_experts.": f"{SHARED}.",
}
"""Parts that some families (Granite 4, GLM 4) call otherwise."""
_MIXTRAL = "block_sparse_moe."
_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def canonical_name(name: str, prefix: str) -> str:
    """The name that a tensor has here, of one in a file whose names may lack `prefix`, or only its leading "model."."""
    name = _text_side_name(name)
    for other, own in _OTHER_NAMES.items():
        name = name.replace(other, own)
    if _MIXTRAL in name:
        name = _mixtral_name(name)
    if not prefix or name.startswith(("model.", "lm_head.")):
        return name
    if name.startswith(("layers.", "embed_tokens.", "norm.")):
        return f"model.{name}"
    return prefix + name


def _mixtral_name(name: str) -> str:
    """Of a router or an expert of a Mixtral."""
    *front, part, suffix = name.replace(_MIXTRAL, "mlp.").split(".")
    return ".".join([*front, _MIXTRAL_PARTS.get(part, part), suffix])


def _text_side_name(name: str) -> str:
    """Without what tells the text side of a model from its other sides."""
    for side in _TEXT_SIDE:
        if name.startswith(side):
            rest = name.removeprefix(side)
            return rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"
    return name


def is_of_another_side(name: str) -> bool:
    """Whether a tensor belongs to what sees pictures."""
    return name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.", "vision_model."))


def is_derived(name: str) -> bool:
    """Whether some files hold a tensor that follows from the config: old inverse frequencies."""
    return name.endswith(".rotary_emb.inv_freq")
