"""The content of the config.json that a GGUF file's metadata stands for.

Numbers are stored as float32; the shortest decimal that is the same float32 is what the original config.json had.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import CheckpointError, CheckpointWarning, UnsupportedError
from penstock.gguf.families import FAMILIES, LONG_FACTORS, ROPE_FREQS, SHORT_FACTORS, GgufFamily
from penstock.gguf.llama3_factors import llama3_scaling
from penstock.strict_json import Fields, listed, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.compute.kernels import F32
    from penstock.gguf.reader import GgufTensor, Value

# Keys, without the family's name, that change no logit, or that follow from what else there is.
_IGNORED = frozenset(
    [
        "vocab_size",
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
    ]
)
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
}
"""Keys that Penstock knows and runs with these values only."""
_SOME_HAVE = (
    "attention.sliding_window",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "rope.freq_base_swa",
)
"""Keys that are run in the families that name them (families.py)."""
_LARGE_GEMMAS = {("gemma2", 46): 144, ("gemma3", 62): 168}
"""By layers: those whose scores are scaled by something else than the length of a head (Gemma 2 and 3 27B)."""


def family_of(metadata: Mapping[str, Value], source: str) -> tuple[str, GgufFamily]:
    """The name that the file gives its family, and what is known of it. Raises UnsupportedError."""
    name = metadata.get("general.architecture")
    if isinstance(name, str) and name in FAMILIES:
        return name, FAMILIES[name]
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{source} is a GGUF file of the type {shown(kind)}", "Give the model's own file.")
    known = f"In GGUF, Penstock knows the architectures {', '.join(FAMILIES)}."
    raise UnsupportedError(f"{source}: the architecture is {shown(name)}", known)


def config_json(
    metadata: Mapping[str, Value], tensors: Mapping[str, GgufTensor], factors: Mapping[str, F32], source: str
) -> dict[str, Any]:
    """The content of the config.json of the model that `metadata` and the names and shapes of `tensors` describe.

    `factors`: the values of those tensors that scale rope, by name. Raises FormatError for values that cannot be,
    UnsupportedError for those that no config.json stands for. Warns once (CheckpointWarning) of keys that nobody knows.
    """
    name, family = family_of(metadata, source)
    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    fields = Fields(own, source, f"{name}.")
    _check_values(fields, family)
    _check_layers(fields, tensors)
    heads = fields.size("attention.head_count")
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": _vocab_size(tensors, fields),
        "hidden_size": fields.size("embedding_length"),
        "intermediate_size": _same_in_all(fields, "feed_forward_length"),
        "num_hidden_layers": fields.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _same_in_all(fields, "attention.head_count_kv", heads),
        "rms_norm_eps": _decimal(fields.positive("attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": fields.size("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        **family.fixed,
        **{key: _decimal(own[ours]) for ours, key in family.keys.items() if fields.get(ours)},
        **_biases(family, tensors),
        **_rope(fields, heads, factors),
        **_of_gemma(fields, name, heads),
        **_layer_types(fields),
        **special_ids(metadata),
        "torch_dtype": _dtype(tensors),
    }
    if unknown := fields.unknown(_IGNORED):
        warnings.warn(f"{source}: passing over unknown keys: {listed(unknown)}", CheckpointWarning, stacklevel=4)
    return config


def special_ids(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """The tokens that begin and end a text, as a config.json has them. Raises FormatError."""
    fields = Fields(metadata, "GGUF metadata")
    ends = [fields.optional_count(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return {
        "bos_token_id": fields.optional_count("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)),
    }


def generation_json(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """The content of the generation_config.json: what the file recommends for drawing, where it does."""
    keys = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
    found = {ours: metadata.get(f"general.sampling.{theirs}") for theirs, ours in keys.items()}
    said = {key: _decimal(value) for key, value in found.items() if value is not None}
    return {**special_ids(metadata), **said, **({"do_sample": said.get("temperature") != 0} if said else {})}


def _check_values(fields: Fields, family: GgufFamily) -> None:
    """Raise UnsupportedError for values that Penstock does not run."""
    for key, neutral in _NEUTRAL.items():
        if fields.get(key, neutral[0]) not in neutral:
            problem = f"{fields.source}: {fields.prefix}{key} is {shown(fields.get(key))}"
            raise UnsupportedError(problem, f"Penstock runs only models with {key} {shown(neutral[0])}.")
    for key in _SOME_HAVE:
        if fields.get(key) and key not in family.keys:
            problem = f"{fields.source}: {fields.prefix}{key} is {shown(fields.get(key))}"
            raise UnsupportedError(problem, f"Penstock runs no {family.model_type} that has this.")


def _check_layers(fields: Fields, tensors: Mapping[str, GgufTensor]) -> None:
    """Raise CheckpointError where the file has fewer layers than it says: nothing is made for any of those."""
    layers, said = {name.split(".")[1] for name in tensors if name.startswith("blk.")}, fields.size("block_count")
    if len(layers) < said:
        problem = f"{fields.source}: {fields.prefix}block_count is {said:,}, but {len(layers)} layers are there"
        raise CheckpointError(problem, "Complete the download, or copy the files again.")


def _vocab_size(tensors: Mapping[str, GgufTensor], fields: Fields) -> int:
    embedding = tensors.get("token_embd.weight")
    return fields.size("vocab_size") if embedding is None else embedding.shape[0]


def _same_in_all(fields: Fields, key: str, default: int | None = None) -> int:
    """A number, or a list of it for each layer."""
    value = fields.get(key)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        return Fields({key: value[0]}, fields.source, fields.prefix).size(key)
    if isinstance(value, list):
        problem = f"{fields.source}: {fields.prefix}{key} is {shown(value)}, which differs between layers"
        raise UnsupportedError(problem, "Penstock runs only models whose layers are of one shape.")
    return fields.size(key, default)


def _biases(family: GgufFamily, tensors: Mapping[str, GgufTensor]) -> dict[str, bool]:
    """Told by the tensors, in families that have them in some models only."""
    of_parts = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"}
    return {key: True for key, name in of_parts.items() if name in tensors and not family.always_biased}


def _rope(fields: Fields, heads: int, factors: Mapping[str, F32]) -> dict[str, Any]:
    hidden, key_length = fields.size("embedding_length"), fields.optional_size("attention.key_length")
    head_dim = key_length or hidden // heads
    if not head_dim:
        fields.fail("attention.head_count", f"at most embedding_length, {hidden}")
    if fields.get("attention.value_length", head_dim) != head_dim:
        fields.fail("attention.value_length", f"the length of a key, {head_dim}")
    turning = fields.optional_size("rope.dimension_count") or head_dim
    theta = _decimal(fields.positive("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_theta": theta, "head_dim": head_dim}
    if turning != head_dim:
        rope["partial_rotary_factor"] = turning / head_dim
    scaling = _scaling(fields, turning, theta, factors)
    return rope | ({"rope_scaling": scaling} if scaling else {})


def _scaling(fields: Fields, turning: int, theta: float, factors: Mapping[str, F32]) -> dict[str, Any] | None:
    original = fields.optional_size("rope.scaling.original_context_length")
    kind, trained = fields.get("rope.scaling.type", "none"), {"original_max_position_embeddings": original}
    fields.get("rope.scaling.attn_factor")  # follows from the others
    if ROPE_FREQS in factors:
        return llama3_scaling(factors[ROPE_FREQS], theta, turning, fields.source)
    if LONG_FACTORS in factors and SHORT_FACTORS in factors:
        pair = {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS}
        lists = {key: [_decimal(value) for value in factors[name].tolist()] for key, name in pair.items()}
        return {"rope_type": "longrope", **lists, **(trained if original else {})}
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _decimal(fields.positive("rope.scaling.factor"))}
    if kind == "yarn":
        betas = {
            key: _decimal(fields.positive(f"rope.scaling.yarn_{key}"))
            for key in ("beta_fast", "beta_slow")
            if fields.get(f"rope.scaling.yarn_{key}") is not None
        }
        factor = _decimal(fields.positive("rope.scaling.factor"))
        return {"rope_type": "yarn", "factor": factor, **betas, **(trained if original else {})}
    problem = f"{fields.source}: {fields.prefix}rope.scaling.type is {shown(kind)}"
    raise UnsupportedError(problem, "Penstock knows the types 'none', 'linear' and 'yarn' in GGUF.")


def _of_gemma(fields: Fields, name: str, heads: int) -> dict[str, Any]:
    """What scores are scaled by, which llama.cpp, too, knows by the number of layers."""
    if not name.startswith("gemma"):
        return {}
    head_dim = fields.optional_size("attention.key_length") or fields.size("embedding_length") // heads
    return {"query_pre_attn_scalar": _LARGE_GEMMAS.get((name, fields.size("block_count")), head_dim)}


def _layer_types(fields: Fields) -> dict[str, Any]:
    """Which layers have a window, where the file says so."""
    pattern = fields.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if window else "full_attention" for window in pattern]}
    return {"sliding_window_pattern": pattern} if pattern is not None else {}


def _dtype(tensors: Mapping[str, GgufTensor]) -> str:
    """Of most weights."""
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    largest = max(tensors.values(), key=lambda tensor: tensor.end - tensor.begin, default=None)
    return names[largest.dtype.value] if largest is not None else "bfloat16"


def _decimal(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value
