"""Qwen2 by its config.json: defaults, biases, and the windows that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.cases import QWEN2
from helpers.checkpoints import tiny_config
from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig, RopeConfig
from penstock.architectures.registry import parse_config
from penstock.errors import UnsupportedError


def parse(**changes: Any) -> ModelConfig:
    config = tiny_config(**QWEN2 | changes)
    return parse_config({key: value for key, value in config.items() if value is not None}, "config.json")


def test_defaults_are_those_of_transformers() -> None:
    assert parse_config({"model_type": "qwen2"}, "config.json") == ModelConfig(
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
    biases = {name for name in Architecture(parse()).tensors if name.endswith("bias")}
    assert biases == {f"model.layers.{i}.self_attn.{part}_proj.bias" for i in range(2) for part in "qkv"}


def test_a_window_that_is_not_in_use_means_nothing() -> None:
    assert parse(sliding_window=4096, max_window_layers=21) == parse(sliding_window=None, max_window_layers=None)
    assert parse(layer_types=["full_attention"] * 2) == parse()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_what_it_does_not_run(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        parse(**changes)


def test_the_names_have_to_go_together() -> None:
    with pytest.raises(UnsupportedError, match="model_type is 'llama'"):
        parse(model_type="llama")
