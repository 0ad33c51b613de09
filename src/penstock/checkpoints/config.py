"""The model's shape and constants, from `config.json`, and its sampling defaults, from `generation_config.json`.

Names and defaults are those of LlamaConfig in transformers, whose files these are. RoPE settings come in two layouts:
`rope_theta` beside `rope_scaling`, and, newer, both within `rope_parameters`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.checkpoints.strict_json import GET_AGAIN, Fields, listed, shown
from penstock.errors import FormatError, UnsupportedError

RopeKind = Literal["default", "linear", "llama3"]

# Keys of config.json that change no logit of a Llama.
_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path attn_implementation dtype
    finetuning_task id2label is_llama_config label2id max_sequence_length model_max_length name_or_path
    output_attentions output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id
    task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_TRAINING = "attention_dropout initializer_range"
_NO_EFFECT_IN_LLAMA = """
    add_cross_attention chunk_size_feed_forward cross_attention_hidden_size is_decoder pretraining_tp pruned_heads
    tie_encoder_decoder
"""
_GENERATION = """
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature
    top_k top_p typical_p
"""
IGNORED_KEYS = frozenset(f"{_BOOKKEEPING} {_TRAINING} {_NO_EFFECT_IN_LLAMA} {_GENERATION}".split())

# Keys that Penstock knows and runs with these values only. None stands for null.
_ONLY_VALUES: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False, None),
    "partial_rotary_factor": (1, None),
    "per_layer_config": ({}, None),
    "rope_interleaved": (False, None),
    "sliding_window": (None,),
}

# Keys of generation_config.json that would change the tokens, with the values at which they don't, besides null.
_NEUTRAL_GENERATION: Mapping[str, object] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "exponential_decay_length_penalty": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": [],
    "stop_strings": [],
    "suppress_tokens": [],
    "top_h": None,
    "typical_p": 1,
}

_SUPPORTED = "Penstock runs LlamaForCausalLM (model_type 'llama'): Llama 2, Llama 3 and their fine-tunes."


class CheckpointWarning(UserWarning):
    """Something in a checkpoint that Penstock passes over."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) with base `theta`.

    `linear` divides all frequencies by `factor`; `llama3` only the low ones, with a ramp between the wavelengths
    original_max_position_embeddings / high_freq_factor and / low_freq_factor. A kind leaves unused fields as below.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a Llama needs to run, with transformers' names; sizes are positive, eos_token_ids may be empty."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How a checkpoint wants its tokens drawn; None where it does not say. Without do_sample it is greedy."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def parse_config(mapping: Mapping[str, object], source: str) -> ModelConfig:
    """The model that `mapping`, the content of a `config.json`, describes; `source` opens all messages.

    Raises UnsupportedError for anything but a full-precision Llama and FormatError for values that cannot be.
    Warns once (CheckpointWarning) of all keys that it does not know.
    """
    fields = Fields(mapping, source)
    _check_architecture(fields)
    _check_known_values(fields)
    hidden_size = fields.size("hidden_size", 4096)
    heads = fields.size("num_attention_heads", 32)
    max_positions = fields.size("max_position_embeddings", 2048)
    config = ModelConfig(
        vocab_size=fields.size("vocab_size", 32000),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size", 11008),
        num_hidden_layers=fields.size("num_hidden_layers", 32),
        num_attention_heads=heads,
        num_key_value_heads=fields.optional_size("num_key_value_heads") or heads,
        head_dim=_head_dim(fields, hidden_size, heads),
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope=_parse_rope(fields, max_positions),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        max_position_embeddings=max_positions,
        bos_token_id=fields.optional_count("bos_token_id", 1),
        eos_token_ids=fields.token_ids("eos_token_id", 2),
    )
    if config.num_attention_heads % config.num_key_value_heads:
        fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    unknown = fields.unknown(IGNORED_KEYS)
    if unknown:
        _warn(f"{source}: passing over unknown keys: {listed(unknown)}")
    return config


def parse_generation_defaults(
    mapping: Mapping[str, object], source: str, eos_token_ids: tuple[int, ...] = ()
) -> GenerationDefaults:
    """The defaults that `mapping`, the content of a `generation_config.json`, gives; its stop tokens come first,
    `eos_token_ids` where it names none.

    Raises FormatError for values out of range. Warns once (CheckpointWarning) of settings that would change the
    tokens and that Penstock does not have; all other keys are ignored.
    """
    fields = Fields(mapping, source)
    defaults = GenerationDefaults(
        do_sample=fields.get("do_sample") is not None and fields.flag("do_sample", False),
        temperature=fields.optional_number("temperature", lambda t: 0 <= t <= 2, "a number from 0 to 2"),
        top_p=fields.optional_number("top_p", lambda p: 0 < p <= 1, "a number above 0, at most 1"),
        top_k=fields.optional_count("top_k"),
        min_p=fields.optional_number("min_p", lambda p: 0 <= p <= 1, "a number from 0 to 1"),
        repetition_penalty=fields.optional_number("repetition_penalty", lambda r: r > 0, "a positive number"),
        eos_token_ids=fields.token_ids("eos_token_id") or eos_token_ids,
    )
    lost = [key for key, neutral in _NEUTRAL_GENERATION.items() if mapping.get(key) not in (None, neutral)]
    if lost:
        _warn(f"{source}: passing over settings that Penstock does not have: {listed(lost)}")
    return defaults


def _warn(message: str) -> None:
    warnings.warn(message, CheckpointWarning, stacklevel=4)


def _check_architecture(fields: Fields) -> None:
    architectures, model_type = fields.get("architectures"), fields.get("model_type")
    if architectures is not None and not isinstance(architectures, list):
        fields.fail("architectures", "a list of names")
    if not architectures and model_type is None:
        raise UnsupportedError(f"{fields.source} names neither architectures nor a model_type", _SUPPORTED)
    if architectures and architectures != ["LlamaForCausalLM"]:
        raise UnsupportedError(f"{fields.source}: the architecture is {shown(architectures)}", _SUPPORTED)
    if model_type not in ("llama", None):
        raise UnsupportedError(f"{fields.source}: the model_type is {shown(model_type)}", _SUPPORTED)


def _check_known_values(fields: Fields) -> None:
    for key in ("quantization_config", "compression_config"):
        if fields.get(key) is not None:
            problem = f"{fields.source}: {key} is set, so these are not the full-precision weights"
            raise UnsupportedError(problem, "Use the original BF16, F16 or F32 checkpoint that was quantized.")
    for key in _ONLY_VALUES:
        _check_only_value(fields, key)


def _check_only_value(fields: Fields, key: str) -> None:
    supported = _ONLY_VALUES[key]
    if fields.get(key, supported[0]) not in supported:
        problem = f"{fields.source}: {fields.prefix}{key} is {shown(fields.get(key))}"
        raise UnsupportedError(problem, f"Penstock runs only models with {key} {shown(supported[0])}.")


def _head_dim(fields: Fields, hidden_size: int, heads: int) -> int:
    head_dim = fields.optional_size("head_dim")
    if head_dim is None:
        if hidden_size % heads:
            fields.fail("num_attention_heads", f"a divisor of hidden_size, {hidden_size} (there is no head_dim)")
        head_dim = hidden_size // heads
    if head_dim % 2:
        problem = f"{fields.source}: head_dim is {head_dim}; rotary position embedding needs an even one"
        raise FormatError(problem, GET_AGAIN)
    return head_dim


def _parse_rope(fields: Fields, max_positions: int) -> RopeConfig:
    # Where there are both, rope_scaling wins, as in transformers; rope_parameters then counts as unknown.
    rope = fields.part("rope_scaling")
    if not rope.mapping:
        rope = fields.part("rope_parameters")
    _check_only_value(rope, "partial_rotary_factor")
    theta = rope.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", rope.positive("factor"))
    if kind == "llama3":
        return _parse_llama3_rope(rope, theta, max_positions)
    remedy = "Penstock runs models with the rope types 'default', 'linear' and 'llama3'."
    raise UnsupportedError(f"{fields.source}: {rope.prefix}rope_type is {shown(kind)}", remedy)


def _parse_llama3_rope(rope: Fields, theta: float, max_positions: int) -> RopeConfig:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if high <= low:
        rope.fail("high_freq_factor", f"above low_freq_factor, {low}")
    original = rope.size("original_max_position_embeddings", max_positions)
    return RopeConfig(theta, "llama3", rope.positive("factor"), low, high, original)
