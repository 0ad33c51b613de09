from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from helpers.checkpoints import tiny_config
from penstock.architectures.config import ModelConfig, RopeConfig
from penstock.architectures.family import IGNORED_KEYS
from penstock.architectures.registry import parse_config
from penstock.checkpoints.generation_config import GenerationDefaults, parse_generation_defaults
from penstock.errors import CheckpointError, CheckpointWarning, FormatError, UnsupportedError

DEMO = Path(penstock.__file__).parent / "data" / "demo"

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA3_ROPE = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def parse(**changes: Any) -> ModelConfig:
    return parse_config(tiny_config(**changes), "config.json")


def parse_rope(**keys: Any) -> RopeConfig:
    config = {key: value for key, value in tiny_config().items() if not key.startswith("rope")}
    return parse_config(config | keys, "config.json").rope


def test_llama_3_1_8b() -> None:
    assert parse_config(LLAMA_3_1_8B, "config.json") == ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope=LLAMA3_ROPE,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        max_position_embeddings=131072,
        bos_token_id=128000,
        eos_token_ids=(128001, 128008, 128009),
    )


def test_demo_model() -> None:
    config = parse_config(json.loads((DEMO / "config.json").read_text()), "config.json")
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (6, 256, 32)
    assert (config.rope, config.eos_token_ids) == (LLAMA3_ROPE, (1, 4))


def test_defaults_are_those_of_transformers() -> None:
    assert parse_config({"model_type": "llama"}, "config.json") == ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope=RopeConfig(10000.0),
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def test_null_heads_and_tokens() -> None:
    config = parse(num_key_value_heads=None, head_dim=None, bos_token_id=None, eos_token_id=None)
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


def test_head_dim_need_not_divide_the_hidden_size() -> None:
    assert parse(hidden_size=30, head_dim=16).head_dim == 16


LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({}, RopeConfig(10000.0)),
        ({"rope_theta": 500000}, RopeConfig(500000.0)),
        ({"rope_scaling": None, "rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7.0}}, RopeConfig(7.0)),
        ({"rope_scaling": {"type": "default"}}, RopeConfig(10000.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(10000.0, "linear", 2.0)),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.5}}, RopeConfig(10000.0, "linear", 2.5)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}, LLAMA3_ROPE),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 5e5}}, LLAMA3_ROPE),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}, LLAMA3_ROPE),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1.0}, RopeConfig(5e5)),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}, "partial_rotary_factor": 1}, RopeConfig(10000.0)),
    ],
)
def test_rope_layouts(keys: dict[str, Any], rope: RopeConfig) -> None:
    assert parse_rope(**keys) == rope


def test_llama3_rope_was_trained_for_all_positions_unless_it_says_less() -> None:
    scaling = {key: value for key, value in LLAMA3.items() if not key.startswith("original")}
    assert parse_rope(rope_scaling={"rope_type": "llama3", **scaling}).original_max_position_embeddings == 512


UNSUPPORTED = {
    "phimoe": ({"architectures": ["PhimoeForCausalLM"]}, "the architecture is ['PhimoeForCausalLM']"),
    "another family's type": ({"architectures": ["MistralForCausalLM"]}, "the model_type is 'llama'"),
    "two": ({"architectures": ["LlamaForCausalLM", "X"]}, "the architecture is ['LlamaForCausalLM', 'X']"),
    "classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "['LlamaForSequenceClassification']"),
    "type": ({"model_type": "qwen2"}, "the model_type is 'qwen2'"),
    "nothing": ({"model_type": None, "architectures": None}, "names neither architectures nor a model_type"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "window": ({"sliding_window": 4096}, "sliding_window is 4096"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "partial in rope": (
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        "rope_parameters.partial_rotary_factor is 0.25",
    ),
    "encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved is True"),
    "layers differ": ({"per_layer_config": {"1": {"head_dim": 4}}}, "per_layer_config is {'1': {'head_dim': 4}}"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling.rope_type is 'dynamic'"),
    "rope type a list": ({"rope_scaling": {"rope_type": []}}, "rope_scaling.rope_type is []"),
    "rope type null": ({"rope_scaling": {"rope_type": None}}, "rope_scaling.rope_type is None"),
    "gptq": (
        {"quantization_config": {"quant_method": "gptq"}},
        "quantization_config is set, so these are not the full",
    ),
    "compressed": (
        {"compression_config": {}},
        "compression_config is set, so these are not the full-precision weights",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_models_are_named(case: str) -> None:
    changes, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedError) as caught:
        parse(**changes)
    assert message in caught.value.problem
    assert caught.value.problem.startswith("config.json")
    assert caught.value.remedy


def test_unsupported_models_are_told_what_is_supported() -> None:
    with pytest.raises(UnsupportedError, match="Penstock runs Llama 2, Llama 3 and their fine-tunes; Qwen2"):
        parse(architectures=["StableLmForCausalLM"])
    with pytest.raises(UnsupportedError, match="Penstock runs only models with hidden_act 'silu'"):
        parse(hidden_act="gelu")
    with pytest.raises(UnsupportedError, match="rope types 'default', 'linear', 'llama3', 'yarn' and 'longrope'"):
        parse(rope_scaling={"type": "dynamic"})


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]
MALFORMED = {
    "architectures": (
        {"architectures": "LlamaForCausalLM"},
        "architectures is 'LlamaForCausalLM', not a list of names",
    ),
    "heads": ({"num_attention_heads": 6, "num_key_value_heads": 4}, "is 4, not a divisor of num_attention_heads, 6"),
    "odd head": ({"head_dim": 7}, "head_dim is 7; rotary position embedding needs an even one"),
    "odd head by division": ({"hidden_size": 12, "head_dim": None}, "head_dim is 3; rotary position embedding needs"),
    "no head": ({"hidden_size": 33, "head_dim": None}, "num_attention_heads is 4, not a divisor of hidden_size, 33"),
    "eps": ({"rms_norm_eps": 0}, "rms_norm_eps is 0, not a positive number"),
    "eps null": ({"rms_norm_eps": None}, "rms_norm_eps is None, not a positive number"),
    "tie": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or false"),
    "bias": ({"attention_bias": 0}, "attention_bias is 0, not true or false"),
    "mlp bias": ({"mlp_bias": None}, "mlp_bias is None, not true or false"),
    "bos": ({"bos_token_id": -1}, "bos_token_id is -1, not an integer from 0 to 2**31 - 1"),
    "eos": ({"eos_token_id": [1, "2"]}, "eos_token_id is [1, '2'], not an integer from 0 to 2**31 - 1 or a list"),
    "theta": ({"rope_theta": -1.0}, "rope_theta is -1.0, not a positive number"),
    "rope a list": ({"rope_scaling": []}, "rope_scaling is [], not an object or null"),
    "rope a number": ({"rope_parameters": 1}, "rope_parameters is 1, not an object or null"),
    "rope theta": (
        {"rope_parameters": {"rope_theta": "1"}},
        "rope_parameters.rope_theta is '1', not a positive number",
    ),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing, not a positive number"),
    "factor": ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor is 0, not a positive number"),
    "layers": ({"num_hidden_layers": 65537}, "num_hidden_layers is 65537, not a number up to 65,536"),
    "yarn without factor": ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing, not a positive"),
    "longrope without factors": (
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 4}},
        "rope_scaling.short_factor is missing, not a list of 4 positive numbers",
    ),
    "longrope of another length": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 3}},
        "rope_scaling.long_factor is [1.0, 1.0, 1.0], not a list of 4 positive numbers",
    ),
    "no ramp": (
        {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1}},
        "rope_scaling.high_freq_factor is 1, not above low_freq_factor, 1.0",
    ),
    "original": (
        {"rope_scaling": {"type": "llama3", **LLAMA3, "original_max_position_embeddings": 0.5}},
        "rope_scaling.original_max_position_embeddings is 0.5, not a positive integer below 2**31",
    ),
}
MALFORMED |= {f"{key} 0": ({key: 0}, f"{key} is 0, not a positive integer below 2**31") for key in SIZES}
MALFORMED |= {f"{key} negative": ({key: -8}, f"{key} is -8, not a positive integer below 2**31") for key in SIZES}
MALFORMED |= {f"{key} text": ({key: "8"}, f"{key} is '8', not a positive integer below 2**31") for key in SIZES}


@pytest.mark.parametrize("case", MALFORMED)
def test_impossible_values_are_named(case: str) -> None:
    changes, message = MALFORMED[case]
    with pytest.raises(FormatError) as caught:
        parse(**changes)
    assert message in caught.value.problem
    assert caught.value.problem.startswith("config.json: ")
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor"])
def test_llama3_rope_needs_its_factors(key: str) -> None:
    scaling = {name: value for name, value in LLAMA3.items() if name != key}
    with pytest.raises(FormatError, match=f"rope_scaling.{key} is missing, not a positive number"):
        parse(rope_scaling={"rope_type": "llama3", **scaling})


def test_keys_without_effect_are_ignored() -> None:
    assert parse(**dict.fromkeys(IGNORED_KEYS, "anything")) == parse()


def test_unknown_keys_warn_once_in_one_line() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse(logit_scale=2, clip_qkv=8, rope_scaling={"type": "default", "beta_fast": 32}, rope_parameters={"x": 1})
    assert [warning.category for warning in caught] == [CheckpointWarning]
    assert str(caught[0].message) == (
        "config.json: passing over unknown keys: 'logit_scale', 'clip_qkv', 'rope_parameters', 'rope_scaling.beta_fast'"
    )


VALUES = st.recursive(
    st.sampled_from(
        [0, 1, 2, 7, -1, 2**31, 10**400, 0.5, 1e308, True, None, "", "silu", "llama3", "linear", "default"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "factor"]), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*LLAMA_3_1_8B, "rope_parameters", "head_dim", "sliding_window"]), VALUES))
def test_any_values_parse_or_raise(changes: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = parse_config(LLAMA_3_1_8B | changes, "config.json")
    except CheckpointError:
        return
    assert config.num_attention_heads % config.num_key_value_heads == 0


def test_generation_defaults_of_llama_3_1() -> None:
    mapping = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [128001, 128009], "x": 1}
    assert parse_generation_defaults(mapping, "generation_config.json", (2,)) == GenerationDefaults(
        do_sample=True, temperature=0.6, top_p=0.9, eos_token_ids=(128001, 128009)
    )


def test_generation_defaults_of_every_kind() -> None:
    mapping = {"temperature": 0, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "do_sample": None}
    assert parse_generation_defaults(mapping, "generation_config.json") == GenerationDefaults(
        do_sample=False, temperature=0.0, top_k=40, min_p=0.1, repetition_penalty=1.1
    )


@pytest.mark.parametrize("eos", [{}, {"eos_token_id": None}, {"eos_token_id": []}])
def test_stop_tokens_come_from_the_config_where_generation_names_none(eos: dict[str, Any]) -> None:
    assert parse_generation_defaults(eos, "generation_config.json", (2, 3)).eos_token_ids == (2, 3)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("do_sample", 1, "true or false"),
        ("temperature", -0.1, "a number from 0 to 2"),
        ("temperature", 2.5, "a number from 0 to 2"),
        ("temperature", "0.6", "a number from 0 to 2"),
        ("top_p", 0, "a number above 0, at most 1"),
        ("top_p", 1.1, "a number above 0, at most 1"),
        ("top_k", -1, "an integer from 0 to 2**31 - 1"),
        ("top_k", 1.0, "an integer from 0 to 2**31 - 1"),
        ("min_p", 2, "a number from 0 to 1"),
        ("repetition_penalty", 0, "a positive number"),
        ("eos_token_id", "</s>", "an integer from 0 to 2**31 - 1 or a list of them"),
    ],
)
def test_impossible_generation_defaults_are_named(key: str, value: object, expected: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_generation_defaults({key: value}, "generation_config.json")
    assert caught.value.problem == f"generation_config.json: {key} is {value!r}, not {expected}"


def test_generation_settings_that_would_change_the_tokens_warn_once() -> None:
    mapping = {"typical_p": 0.9, "no_repeat_ngram_size": 3, "min_length": 0, "suppress_tokens": [], "num_beams": 4}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse_generation_defaults(mapping, "generation_config.json")
    assert [str(warning.message) for warning in caught] == [
        "generation_config.json: passing over settings that Penstock does not have: 'no_repeat_ngram_size', 'typical_p'"
    ]
    assert caught[0].category is CheckpointWarning
