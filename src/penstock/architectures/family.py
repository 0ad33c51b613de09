"""A family of models, and how the content of its config.json becomes a ModelConfig.

Names and defaults are those of the family's configuration class in transformers, whose files these are. RoPE settings
come in two layouts: `rope_theta` beside `rope_scaling`, and, newer, both within `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.architectures.config import ModelConfig, RopeConfig
from penstock.errors import FormatError, UnsupportedError
from penstock.strict_json import GET_AGAIN, Fields, shown

# Keys of config.json that change no logit of a decoder.
_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path attn_implementation dtype
    finetuning_task id2label is_llama_config label2id max_sequence_length model_max_length name_or_path
    output_attentions output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id
    task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
_TRAINING = "attention_dropout initializer_range"
_NO_EFFECT = """
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
IGNORED_KEYS = frozenset(f"{_BOOKKEEPING} {_TRAINING} {_NO_EFFECT} {_GENERATION}".split())

# Keys that Penstock knows and runs with these values only. None stands for null.
_ONLY_VALUES: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False, None),
    "partial_rotary_factor": (1, None),
    "per_layer_config": ({}, None),
    "rope_interleaved": (False, None),
}


@dataclass(frozen=True, slots=True)
class Biases:
    """Which products have one."""

    qkv: bool
    o: bool
    mlp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: what it calls itself, and how its config.json differs from the others'."""

    model_type: str
    architecture: str
    known_as: str
    """Models of it that people know."""
    biases: Callable[[Fields], Biases]
    sizes: Mapping[str, int]
    """Where a key is absent: vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
    num_key_value_heads (0: as many as there are heads), max_position_embeddings."""
    bos_token_id: int | None
    eos_token_id: int | None
    """These, too, where the key is absent."""
    only_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys that are known and run with these values only, the first of which is that of an absent key."""
    ignored: frozenset[str] = frozenset()
    """Keys that change no logit, with those values."""

    def read(self, fields: Fields) -> ModelConfig:
        """The model that a config.json of this family describes.

        Raises FormatError for values that cannot be, UnsupportedError for those that Penstock does not run.
        """
        only_values = {**_ONLY_VALUES, **self.only_values}
        for key, values in only_values.items():
            check_only_value(fields, key, values)
        hidden_size, heads = self._size(fields, "hidden_size"), self._size(fields, "num_attention_heads")
        max_positions, biases = self._size(fields, "max_position_embeddings"), self.biases(fields)
        config = ModelConfig(
            vocab_size=self._size(fields, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._size(fields, "intermediate_size"),
            num_hidden_layers=self._size(fields, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=self._kv_heads(fields) or heads,
            head_dim=_head_dim(fields, hidden_size, heads),
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope=read_rope(fields, max_positions),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=biases.qkv,
            o_bias=biases.o,
            mlp_bias=biases.mlp,
            max_position_embeddings=max_positions,
            bos_token_id=fields.optional_count("bos_token_id", self.bos_token_id),
            eos_token_ids=fields.token_ids("eos_token_id", self.eos_token_id),
        )
        if config.num_attention_heads % config.num_key_value_heads:
            fields.fail("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
        return config

    def unknown_keys(self, fields: Fields) -> list[str]:
        """Those that nobody has asked for or knows to be harmless."""
        return fields.unknown(IGNORED_KEYS | self.ignored)

    def _size(self, fields: Fields, key: str) -> int:
        return fields.size(key, self.sizes[key])

    def _kv_heads(self, fields: Fields) -> int | None:
        default = self.sizes["num_key_value_heads"]
        if "num_key_value_heads" not in fields.mapping and default:
            return default
        return fields.optional_size("num_key_value_heads")


def check_only_value(fields: Fields, key: str, supported: tuple[object, ...]) -> None:
    """Raise UnsupportedError unless a key has one of these values; an absent one has the first."""
    if fields.get(key, supported[0]) not in supported:
        problem = f"{fields.source}: {fields.prefix}{key} is {shown(fields.get(key))}"
        raise UnsupportedError(problem, f"Penstock runs only models with {key} {shown(supported[0])}.")


def read_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """Raises FormatError and UnsupportedError."""
    # Where there are both, rope_scaling wins, as in transformers; rope_parameters then counts as unknown.
    rope = fields.part("rope_scaling")
    if not rope.mapping:
        rope = fields.part("rope_parameters")
    check_only_value(rope, "partial_rotary_factor", _ONLY_VALUES["partial_rotary_factor"])
    theta = rope.positive("rope_theta", fields.positive("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", rope.positive("factor"))
    if kind == "llama3":
        return _read_llama3_rope(rope, theta, max_positions)
    remedy = "Penstock runs models with the rope types 'default', 'linear' and 'llama3'."
    raise UnsupportedError(f"{fields.source}: {rope.prefix}rope_type is {shown(kind)}", remedy)


def _read_llama3_rope(rope: Fields, theta: float, max_positions: int) -> RopeConfig:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if high <= low:
        rope.fail("high_freq_factor", f"above low_freq_factor, {low}")
    original = rope.size("original_max_position_embeddings", max_positions)
    return RopeConfig(theta, "llama3", rope.positive("factor"), low, high, original)


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
