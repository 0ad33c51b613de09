"""Each family by its config.json: what sets it apart, its defaults, and what is refused."""

from __future__ import annotations

import contextlib
import math
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.cases import CASES, FAMILY_CASES, FULL, GEMMA3, PHI3, QWEN2, SLIDING
from helpers.checkpoints import tiny_config
from helpers.family_reading import tensor_shapes
from penstock.architectures.base import Architecture
from penstock.architectures.config import LayerKind, ModelConfig, RopeConfig
from penstock.architectures.names import canonical_name
from penstock.architectures.registry import FAMILIES, parse_config
from penstock.architectures.unsupported import _LACKS
from penstock.errors import CheckpointWarning, FormatError, PenstockError, UnsupportedError


def parse(_base: dict[str, Any], **changes: Any) -> ModelConfig:
    config = tiny_config(**_base | changes)
    return parse_config({key: value for key, value in config.items() if value is not None}, "config.json")


def of_type(model_type: str, **keys: Any) -> ModelConfig:
    return parse_config({"model_type": model_type, **keys}, "config.json")


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_those_of_the_second_reading(name: str) -> None:
    config = {key: value for key, value in tiny_config(**CASES[name].config).items() if value is not None}
    config |= dict.fromkeys(CASES[name].nulls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = Architecture(parse_config(config, "config.json")).tensors
    assert tensors == {canonical_name(name, ""): shape for name, shape in tensor_shapes(config).items()}


def test_defaults_of_qwen2() -> None:
    assert of_type("qwen2") == ModelConfig(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope=RopeConfig(10000.0),
        tie_word_embeddings=False,
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_ids=(),
    )


def test_biases_of_queries_keys_and_values_alone() -> None:
    biases = {name for name in Architecture(parse(QWEN2)).tensors if name.endswith("bias")}
    assert biases == {f"model.layers.{i}.self_attn.{part}_proj.bias" for i in range(2) for part in "qkv"}


def windows(config: ModelConfig) -> list[int]:
    return [config.layer_kind(layer).window for layer in range(config.num_hidden_layers)]


def ropes(config: ModelConfig) -> str:
    return "".join(config.layer_kind(layer).rope[0] for layer in range(config.num_hidden_layers))


class TestWindows:
    def test_one_that_is_not_in_use_means_nothing(self) -> None:
        assert parse(QWEN2, sliding_window=4096, max_window_layers=21) == parse(QWEN2, max_window_layers=None)
        assert parse(QWEN2, layer_types=[FULL] * 2) == parse(QWEN2)

    def test_of_qwens_last_layers(self) -> None:
        used = {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 4}
        assert windows(parse(QWEN2, **used, max_window_layers=3)) == [0, 0, 0, 9]
        assert windows(parse(QWEN2, **used, max_window_layers=30)) == [0] * 4

    def test_mistrals_is_there_where_the_key_is_not(self) -> None:
        assert set(windows(of_type("mistral"))) == {4096}
        assert set(windows(of_type("mistral", sliding_window=None))) == {0}

    def test_patterns_where_no_types_are_given(self) -> None:
        assert windows(of_type("gemma2", num_hidden_layers=4)) == [4096, 0, 4096, 0]
        assert windows(of_type("gemma3_text", num_hidden_layers=7)) == [4096] * 5 + [0, 4096]
        assert windows(of_type("gemma3_text", num_hidden_layers=4, sliding_window_pattern=2)) == [4096, 0, 4096, 0]
        assert windows(of_type("olmo3", num_hidden_layers=5)) == [4096] * 3 + [0, 4096]
        assert windows(of_type("exaone4", num_hidden_layers=5)) == [4096] * 3 + [0, 4096]
        letters = of_type("exaone4", num_hidden_layers=6, sliding_window_pattern="LLG")
        assert windows(letters) == [4096, 4096, 0] * 2

    def test_of_a_whole_context_are_none(self) -> None:
        assert parse(PHI3, sliding_window=512).layer_kinds == ()
        assert windows(parse(PHI3, sliding_window=511)) == [511, 511]


class TestRopes:
    def test_none_in_every_fourth_layer(self) -> None:
        assert ropes(of_type("smollm3", num_hidden_layers=9)) == "mmmnmmmnm"
        assert ropes(of_type("smollm3", num_hidden_layers=3, no_rope_layers=[0, 1, 1])) == "nmm"

    def test_two(self) -> None:
        config = of_type("gemma3_text", num_hidden_layers=6, rope_scaling={"rope_type": "linear", "factor": 8})
        assert ropes(config) == "lllllm"
        assert config.ropes == {"main": RopeConfig(1e6, "linear", 8.0), "local": RopeConfig(1e4)}

    def test_yarn_of_full_layers_only(self) -> None:
        scaling = {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 8192}
        config = of_type("olmo3", rope_scaling=scaling)
        assert config.ropes["main"].kind == "yarn"
        assert config.ropes["local"] == RopeConfig(5e5)

    def test_only_with_windows(self) -> None:
        assert ropes(of_type("exaone4", num_hidden_layers=4)) == "mmmn"
        assert ropes(of_type("exaone4", num_hidden_layers=4, sliding_window=None)) == "mmmm"

    def test_longrope_is_chosen_by_the_context(self) -> None:
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        scaling = {"type": "yarn", **factors}
        config = parse(PHI3, rope_scaling=scaling, original_max_position_embeddings=128)
        assert config.usual_context == 128
        assert config.for_context(128).rope.factors == (1.0,) * 4
        assert config.for_context(129).rope.factors == (2.0,) * 4
        assert config.for_context(129).rope.long_factors == ()
        assert config.rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(128)))

    def test_a_part_of_a_head(self) -> None:
        assert parse(PHI3, partial_rotary_factor=0.5).rope.rotary_dim == 4
        with pytest.raises(FormatError, match=r"partial_rotary_factor is 1\.5, not a share"):
            parse(PHI3, partial_rotary_factor=1.5)
        with pytest.raises(FormatError, match="an even number of a head's 8 dimensions"):
            parse(PHI3, partial_rotary_factor=0.4)


def test_constants_of_gemma() -> None:
    config = of_type("gemma2", hidden_size=3584)
    assert config.embedding_multiplier == 59.75
    assert config.score_scale == 1 / 16
    assert (config.attention_softcap, config.logits_softcap) == (50, 30)
    assert config.tie_word_embeddings
    assert of_type("gemma2", attn_logit_softcapping=None).attention_softcap == 0


def test_granites_scores_are_not_divided_by_themselves() -> None:
    assert of_type("granite").score_scale == 1
    assert of_type("granite", attention_multiplier=0.0078125).score_scale == 0.0078125


class TestTextSides:
    TEXT = GEMMA3 | {"architectures": None}

    def whole(self, **changes: Any) -> dict[str, Any]:
        text = {key: value for key, value in tiny_config(**self.TEXT).items() if value is not None}
        return {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "vision_config": {"hidden_size": 4},
            "text_config": text,
        } | changes

    def test_is_the_model(self) -> None:
        assert parse_config(self.whole(), "config.json") == parse(GEMMA3)

    def test_stop_tokens_of_the_whole(self) -> None:
        whole = self.whole(eos_token_id=[1, 106])
        del whole["text_config"]["eos_token_id"]
        assert parse_config(whole, "config.json").eos_token_ids == (1, 106)

    def test_of_mistral(self) -> None:
        text = {"model_type": "mistral", "sliding_window": None, "head_dim": 128}
        whole = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text}
        assert parse_config(whole, "config.json") == of_type("mistral", sliding_window=None, head_dim=128)

    def test_without_one(self) -> None:
        with pytest.raises(FormatError, match="text_config is None, not the settings of its text side"):
            parse_config(self.whole(text_config=None), "config.json")

    def test_quantized(self) -> None:
        with pytest.raises(UnsupportedError, match="quantization_config is set"):
            parse_config(self.whole(quantization_config={"quant_method": "fp8"}), "config.json")

    @pytest.mark.parametrize("side", ["language_model.model.", "model.language_model."])
    def test_names(self, side: str) -> None:
        assert canonical_name(f"{side}layers.3.mlp.up_proj.weight", "") == "model.layers.3.mlp.up_proj.weight"
        assert canonical_name("language_model.lm_head.weight", "") == "lm_head.weight"


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        (QWEN2, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (QWEN2, {"model_type": "llama"}, "model_type is 'llama'"),
        (GEMMA3, {"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        (GEMMA3, {"use_bidirectional_attention": True}, "this one makes embeddings"),
        (
            FAMILY_CASES["granite-4"].config,
            {"layer_types": ["mamba", "attention"]},
            r"has Mamba layers \(layer_types is \['mamba', 'attention'\]\)",
        ),
        (FAMILY_CASES["granite-4"].config, {"num_local_experts": 32}, "is a mixture of experts"),
    ],
)
def test_what_is_not_run(base: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        parse(base, **changes)


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        (QWEN2, {"layer_types": FULL}, "layer_types is 'full_attention', not a list of 2"),
        (QWEN2, {"layer_types": [FULL]}, "not a list of 2"),
        (QWEN2, {"layer_types": [FULL, "other"]}, "each 'full_attention' or 'sliding_attention'"),
        (QWEN2, {"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
        (FAMILY_CASES["smollm3"].config, {"no_rope_layers": [1, 2, 0]}, "not a list of 3, each 0 or 1"),
        (FAMILY_CASES["granite"].config, {"logits_scaling": 0}, "logits_scaling is 0, not a positive number"),
    ],
)
def test_what_cannot_be(base: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(FormatError, match=told):
        parse(base, **changes)


@pytest.mark.parametrize("model_type", sorted(_LACKS))
def test_others_are_told_what_they_have_and_what_is_nearest(model_type: str) -> None:
    assert model_type not in {family.model_type for family in FAMILIES}
    with pytest.raises(UnsupportedError) as caught:
        parse_config({"model_type": model_type, "architectures": ["SomethingElse"]}, "config.json")
    assert caught.value.remedy.startswith("It has ")
    assert "The nearest that it runs: " in caught.value.remedy


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-1, 9), st.sampled_from([FULL, SLIDING]), st.none()), max_size=4),
    st.dictionaries(st.sampled_from([FULL, SLIDING, "rope_type", "factor", "rope_theta"]), st.integers(), max_size=3),
)
RARE_KEYS = [
    "layer_types",
    "sliding_window",
    "rope_scaling",
    "rope_parameters",
    "text_config",
    "head_dim",
    "model_type",
]


@given(st.sampled_from(sorted(CASES)), st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_change_of_a_config_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """Never another error, and nothing that takes long or much."""
    config = deepcopy({key: value for key, value in tiny_config(**CASES[name].config).items() if value is not None})
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from([config, *(v for v in config.values() if isinstance(v, dict))]))
        key = data.draw(st.sampled_from(sorted({*where, *RARE_KEYS})))
        where[key] = data.draw(VALUES)
        if data.draw(st.booleans()):
            where.pop(key)
    with warnings.catch_warnings(), contextlib.suppress(PenstockError):
        warnings.simplefilter("ignore", CheckpointWarning)
        parsed = parse_config(config, "config.json")
        assert parsed.layer_kind(parsed.num_hidden_layers - 1) in {*parsed.layer_kinds, LayerKind()}
        assert next(Architecture(parsed).iter_tensors())


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 70))
def test_operations_of_windows_are_those_of_the_keys_that_are_seen(rows: int, before: int, window: int) -> None:
    whole = parse(QWEN2, num_hidden_layers=1)
    config = replace(whole, layer_kinds=(LayerKind(window),))
    seen = sum(min(position + 1, window or position + 1) for position in range(before, before + rows))
    none = sum(position + 1 for position in range(before, before + rows))
    less = Architecture(whole).flops(rows, before + rows) - Architecture(config).flops(rows, before + rows)
    assert less == 4 * (none - seen) * config.num_attention_heads * config.head_dim


def test_the_share_of_keys_that_windows_have_passed() -> None:
    config = of_type("gemma3_text", num_hidden_layers=6, sliding_window=1024)
    assert Architecture(config).share_past_windows(1024) == 0
    assert Architecture(config).share_past_windows(2048) == pytest.approx(5 / 6 / 2)
    assert Architecture(of_type("llama")).share_past_windows(2048) == 0
