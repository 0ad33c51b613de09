"""A family of models, and how the content of its config.json becomes a ModelConfig.

Names and defaults are those of the family's configuration class in transformers, whose files these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.architectures.config import LayerKind, ModelConfig, WhichRope
from penstock.architectures.rope_config import FULL, LAYER_TYPES, SLIDING, RopeDefaults, read_rope
from penstock.architectures.values import check_only_value
from penstock.errors import FormatError
from penstock.strict_json import GET_AGAIN, Fields

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
    "is_encoder_decoder": (False, None),
    "per_layer_config": ({}, None),
    "rope_interleaved": (False, None),
}

MOST_LAYERS = 1 << 16


def _as_it_is(fields: Fields, config: ModelConfig) -> ModelConfig:
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family: what it calls itself, and how its config.json differs from the others'."""

    model_type: str
    architecture: str
    known_as: str
    """Models of it that people know."""
    sizes: Mapping[str, int]
    """Where a key is absent: vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
    num_key_value_heads (0: as many as there are heads), max_position_embeddings, and head_dim, if that does not follow
    from the others."""
    bos_token_id: int | None
    eos_token_id: int | None
    """These, too, where the key is absent, and those that follow."""
    rms_norm_eps: float = 1e-6
    rope: RopeDefaults = field(default_factory=RopeDefaults)
    tie_word_embeddings: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Its key, and the name of the activation that the family runs with."""
    finish: Callable[[Fields, ModelConfig], ModelConfig] = _as_it_is
    """From a Llama of these sizes to what the family is."""
    only_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys that are known and run with these values only, the first of which is that of an absent key."""
    ignored: frozenset[str] = frozenset()
    """Keys that change no logit, with those values."""

    def read(self, fields: Fields) -> ModelConfig:
        """The model that a config.json of this family describes.

        Raises FormatError for values that cannot be, UnsupportedError for those that Penstock does not run.
        """
        activation_key, activation = self.activation
        for key, values in {**_ONLY_VALUES, **self.only_values, activation_key: (activation,)}.items():
            check_only_value(fields, key, values)
        return self.finish(fields, self._base(fields))

    def _base(self, fields: Fields) -> ModelConfig:
        hidden_size, heads = self._size(fields, "hidden_size"), self._size(fields, "num_attention_heads")
        max_positions = self._size(fields, "max_position_embeddings")
        head_dim = self._head_dim(fields, hidden_size, heads)
        config = ModelConfig(
            vocab_size=self._size(fields, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._size(fields, "intermediate_size"),
            num_hidden_layers=self._layers(fields),
            num_attention_heads=heads,
            num_key_value_heads=self._kv_heads(fields) or heads,
            head_dim=head_dim,
            rms_norm_eps=fields.positive("rms_norm_eps", self.rms_norm_eps),
            rope=read_rope(fields, self.rope, head_dim=head_dim, max_positions=max_positions),
            tie_word_embeddings=fields.flag("tie_word_embeddings", self.tie_word_embeddings),
            qkv_bias=False,
            o_bias=False,
            mlp_bias=False,
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

    def _layers(self, fields: Fields) -> int:
        layers = self._size(fields, "num_hidden_layers")
        if layers > MOST_LAYERS:
            fields.fail("num_hidden_layers", f"a number up to {MOST_LAYERS:,}")
        return layers

    def _kv_heads(self, fields: Fields) -> int | None:
        default = self.sizes["num_key_value_heads"]
        if "num_key_value_heads" not in fields.mapping and default:
            return default
        return fields.optional_size("num_key_value_heads")

    def _head_dim(self, fields: Fields, hidden_size: int, heads: int) -> int:
        head_dim = fields.optional_size("head_dim") or self.sizes.get("head_dim")
        if head_dim is None:
            if hidden_size % heads:
                fields.fail("num_attention_heads", f"a divisor of hidden_size, {hidden_size} (there is no head_dim)")
            head_dim = hidden_size // heads
        if head_dim % 2:
            problem = f"{fields.source}: head_dim is {head_dim}; rotary position embedding needs an even one"
            raise FormatError(problem, GET_AGAIN)
        return head_dim


def window_of(fields: Fields, default: int | None) -> int:
    """The size of its windows, 0 for none; `default` where the key is absent, None stands for none."""
    window = fields.get("sliding_window", default)
    return 0 if window is None else fields.size("sliding_window", default)


def layer_types(fields: Fields, layers: int, usual: Callable[[int], str]) -> list[str]:
    """The type of each layer: `layer_types`, where that is given, else by what the family does."""
    types = fields.get("layer_types")
    if types is None:
        return [usual(layer) for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in LAYER_TYPES for kind in types):
        fields.fail("layer_types", f"a list of {layers}, each {FULL!r} or {SLIDING!r}")
    return types


def kinds_of(
    types: list[str], window: int, *, full: WhichRope = "main", sliding: WhichRope = "main"
) -> tuple[LayerKind, ...]:
    """Layers of these types, with the ropes that each has; none where all are alike, and like a Llama's."""
    kinds = {FULL: LayerKind(rope=full), SLIDING: LayerKind(window, sliding)}
    layers = tuple(kinds[kind] for kind in types)
    return () if set(layers) <= {LayerKind()} else layers
