"""Logits against the float64 reference: off by no more than float32 rounding of every single operation explains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import CASES, DEMO, LLAMA3, Case, demo_tokens, random_tokens
from helpers.checkpoints import as_dtype, random_tensors, tiny_config, to_bf16, to_float32, write_checkpoint
from helpers.family_reading import rope_frequencies
from helpers.reference import F32, Reference, read_weights, round_kv
from helpers.rounding_noise import expected_logits
from helpers.thorough import quick
from penstock import LLM
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.models.rope import inverse_frequencies as penstock_inverse_frequencies
from penstock.models.rows import Rows, SequenceRows

LENGTH = 40
PROMPT = 33


def step_by_step(llm: LLM, tokens: list[int]) -> F32:
    cache = llm.new_cache()
    parts = [llm.model.forward(tokens[:PROMPT], 0, cache)]
    parts += [llm.model.forward([token], PROMPT + i, cache) for i, token in enumerate(tokens[PROMPT:])]
    return np.concatenate(parts)


@pytest.mark.parametrize("kv", quick(["bf16"], ["f32", "bf16"]))
@pytest.mark.parametrize("name", CASES)
def test_random_checkpoints(tmp_path: Path, name: str, kv: str) -> None:
    path = CASES[name].write(tmp_path)
    reference = Reference(path)
    tokens = random_tokens(LENGTH, reference.config["vocab_size"])
    expected = expected_logits(reference, tokens, kv=kv)
    with LLM.open(path, kv_dtype=kv) as llm:
        expected.assert_near(llm.logits(tokens))
        expected.assert_near(step_by_step(llm, tokens))


@pytest.mark.parametrize("kv", ["f32", "bf16"])
def test_the_demo_model(kv: str) -> None:
    tokens = demo_tokens(LENGTH)
    expected = expected_logits(Reference(DEMO), tokens, kv=kv, seeds=1)
    with LLM.open("demo", kv_dtype=kv) as llm:
        expected.assert_near(llm.logits(tokens))
        expected.assert_near(step_by_step(llm, tokens))


@pytest.mark.parametrize("first", quick([131_000], [8_190, 131_000]))
@pytest.mark.parametrize("name", ["rope-llama3", "rope-parameters", "rope-linear", "gqa-4"])
def test_far_positions(tmp_path: Path, name: str, first: int) -> None:
    """A short sequence far out: angles of thousands of turns, without the cost of thousands of keys."""
    path = CASES[name].write(tmp_path)
    reference = Reference(path)
    tokens = random_tokens(LENGTH, reference.config["vocab_size"])
    with LLM.open(path, kv_dtype="f32") as llm:
        cache = llm.new_cache()
        rows = SequenceRows.plain(cache, tokens, range(LENGTH))
        llm.weights.limit_resident(0)
        logits, _ = llm.chain.run(Rows([replace(rows, positions=rows.positions + first)]))
    expected_logits(reference, tokens, first=first).assert_near(logits)


@pytest.mark.parametrize("kv", quick(["bf16"], ["f32", "bf16"]))
def test_a_prompt_past_8192_positions(tmp_path: Path, kv: str) -> None:
    config = {"num_hidden_layers": 1, "rope_scaling": LLAMA3, "rope_theta": 5e5, "max_position_embeddings": 131072}
    path = Case(config | {"vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}).write(tmp_path)
    reference, tokens = Reference(path), random_tokens(9_000, 64)
    expected = expected_logits(reference, tokens, rows=slice(-40, None), kv=kv)
    with LLM.open(path, kv_dtype=kv) as llm:
        expected.assert_near(llm.logits(tokens)[-40:])
        cache = llm.new_cache()
        for begin in range(0, 8_999, 3_000):
            llm.model.forward(tokens[:8_999][begin : begin + 3_000], begin, cache)
        expected[-1:].assert_near(llm.model.forward(tokens[-1:], 8_999, cache))


def test_matrices_may_differ_in_type(tmp_path: Path) -> None:
    """Some checkpoints keep a few tensors in another type than the rest."""
    tensors = random_tensors(tiny_config())
    for name in ("layers.0.mlp.up_proj", "layers.1.self_attn.k_proj", "layers.1.mlp.gate_proj"):
        tensors[f"model.{name}.weight"] = to_float32(tensors[f"model.{name}.weight"])
    for name in ("lm_head", "model.norm"):
        tensors[f"{name}.weight"] = as_dtype(to_float32(tensors[f"{name}.weight"]), "F16")
    write_checkpoint(tmp_path, tensors=tensors)
    tokens = random_tokens(LENGTH, 96)
    with LLM.open(tmp_path, kv_dtype="f32") as llm:
        expected_logits(Reference(tmp_path), tokens).assert_near(llm.logits(tokens))


@pytest.mark.parametrize("name", CASES)
def test_both_sides_agree_on_the_inverse_frequencies(tmp_path: Path, name: str) -> None:
    path = CASES[name].write(tmp_path)
    config, reference = open_checkpoint(path).config, Reference(path)
    for rope, settings in config.for_context(config.usual_context).ropes.items():
        inv_freq, factor = reference.frequencies[rope]
        assert penstock_inverse_frequencies(settings, config.head_dim).tolist() == inv_freq.tolist()
        assert np.float32(settings.attention_factor) == np.float32(factor)


def test_inverse_frequencies_of_llama_3_1() -> None:
    """As published for the 8B: short wavelengths untouched, the longest eight times as long."""
    plain, scaled = (rope_frequencies(scaling, {"rope_theta": 500000.0}, 128)[0] for scaling in ({}, LLAMA3))
    ratio, wavelength = plain / scaled, 2 * np.pi / plain
    assert (ratio[wavelength < 2048] == 1).all()
    assert (ratio[wavelength > 8192] == 8).all()
    assert (np.diff(ratio) >= 0).all()
    assert ((ratio > 1) & (ratio < 8)).any()


@pytest.mark.parametrize("name", ["gqa-1", "f16", "f32", "split", "split-bare", "indexed", "tied", "biases"])
def test_the_reference_reads_what_was_written(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    written = random_tensors(tiny_config(**case.config), case.dtype)
    read = read_weights(case.write(tmp_path))
    assert read.keys() == written.keys()
    for key, values in written.items():
        assert (read[key] == to_float32(values)).all()


BELOW_OVERFLOW = {"max_value": 2.0**126, "min_value": -(2.0**126)}


@given(st.lists(st.floats(width=32, **BELOW_OVERFLOW)))
def test_the_reference_rounds_keys_and_values_to_bf16(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert (round_kv(array.astype(np.float64), "bf16") == to_float32(to_bf16(array))).all()


def test_a_slightly_wrong_pass_stands_out_of_the_noise(tmp_path: Path) -> None:
    """The yardstick itself: one row of one matrix, of eight bits of precision, is found."""
    reference = Reference(CASES["gqa-4"].write(tmp_path))
    tokens = random_tokens(LENGTH, reference.config["vocab_size"])
    expected = expected_logits(reference, tokens)
    expected.assert_near(reference.forward(tokens).astype(np.float32))
    reference.weights["model.layers.1.self_attn.v_proj.weight"][0] *= 1 + 2**-8
    with pytest.raises(AssertionError):
        expected.assert_near(reference.forward(tokens).astype(np.float32))
