"""A GGUF file gives the logits, to the bit, of the checkpoint that it was made of, however it is used."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, FAMILY_CASES, Case, random_tokens
from helpers.checkpoint_checks import check_refused, warnings_of
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from helpers.gguf import Info, converted, gguf_bytes, header_bytes, metadata_of, write_gguf_of
from penstock import LLM, SamplingParams
from penstock.batch.opening import model_digest
from penstock.checkpoints.checkpoint import generation_defaults, open_checkpoint
from penstock.errors import CheckpointError, CheckpointWarning, FormatError, UnsupportedError, UsageError
from penstock.packed_format.reader import read_packed
from penstock.packing.pack import pack
from penstock.packing.unpack import unpack
from penstock.packing.verify import verify
from penstock.system import machine
from penstock.weights.identity import model_identity

PLAIN = {name: case for name, case in CASES.items() if name not in FAMILY_CASES}
SCALAR = {"query_pre_attn_scalar": 8}
FAMILIES = {
    **{name: FAMILY_CASES[name] for name in ("qwen3", "qwen3-biases", "qwen3-yarn", "mistral-nemo", "olmo2")},
    **{name: FAMILY_CASES[name] for name in ("granite", "exaone4", "exaone4-window", "phi3", "phi3-window")},
    **{name: FAMILY_CASES[name] for name in ("phi3-longrope", "phi4-mini")},
    "smollm3": Case(FAMILY_CASES["smollm3"].config | {"no_rope_layers": [1, 1, 1, 0, 1], "num_hidden_layers": 5}),
    **{name: Case(FAMILY_CASES[name].config | SCALAR) for name in ("gemma2", "gemma3")},
}
"""What a GGUF can say: no windows of Qwen2 and the first Mistral, no other scores than usual in a Gemma."""


def write_both(path: Path, case: Case, **more: Any) -> tuple[Path, Path]:
    """A checkpoint, and the GGUF that is made of it."""
    config = config_of(case)
    tensors = write_checkpoint(path / "hf", config, dtype=case.dtype)
    return path / "hf", write_gguf_of(path / "model.gguf", config, tensors, **more)[0]


def config_of(case: Case) -> dict[str, Any]:
    config = {key: value for key, value in tiny_config(**case.config).items() if value is not None}
    return config | dict.fromkeys(case.nulls)


def bits(path: Path, tokens: list[int]) -> np.ndarray:
    with LLM.open(path) as llm:
        return llm.logits(tokens).view(np.uint32)


@pytest.mark.parametrize("name", [*PLAIN, *FAMILIES])
def test_bits_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    case = (PLAIN | FAMILIES)[name]
    checkpoint, gguf = write_both(tmp_path, case)
    tokens = random_tokens(40, config_of(case)["vocab_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        assert open_checkpoint(gguf).config == open_checkpoint(checkpoint).config
    np.testing.assert_array_equal(bits(gguf, tokens), bits(checkpoint, tokens))


@pytest.mark.parametrize("name", ["gqa-4", "attention-bias", "f16", "qwen2", "gemma3", "phi3"])
def test_packed_from_it_is_packed_from_the_checkpoint(name: str, tmp_path: Path) -> None:
    case = (PLAIN | FAMILIES)[name]
    checkpoint, gguf = write_both(tmp_path, case)
    told: list[tuple[int, int]] = []
    result = pack(gguf, tmp_path / "packed", on_progress=lambda *progress: told.append(progress))
    pack(checkpoint, tmp_path / "reference")
    assert told[-1] == (result.original_bytes, result.original_bytes)
    ours, theirs = (read_packed(tmp_path / name / "model.safetensors") for name in ("packed", "reference"))
    for tensor_name, tensor in ours.tensors.items():
        if tensor.in_tiers:
            assert _streams(tensor) == _streams(theirs.tensors[tensor_name])
    tokens = random_tokens(30, config_of(case)["vocab_size"])
    np.testing.assert_array_equal(bits(tmp_path / "packed", tokens), bits(checkpoint, tokens))
    assert verify(tmp_path / "packed", gguf).sound
    unpack(tmp_path / "packed", tmp_path / "unpacked")
    np.testing.assert_array_equal(bits(tmp_path / "unpacked", tokens), bits(checkpoint, tokens))


def _streams(tensor: Any) -> list[bytes]:
    data = tensor.path.read_bytes()
    extents = [extent(0, tensor.n_chunks) for extent in (tensor.coarse_extent, tensor.fine_extent)]
    return [data[extent.offset : extent.offset + extent.nbytes] for extent in extents]


def test_sessions_of_it_go_on_packed(tmp_path: Path) -> None:
    _, gguf = write_both(tmp_path, PLAIN["attention-bias"])
    pack(gguf, tmp_path / "packed")
    raw, packed = open_checkpoint(gguf), open_checkpoint(tmp_path / "packed")
    assert model_identity(raw.config, raw.tensors) == model_identity(packed.config, packed.tensors)


def test_verify_finds_a_difference(tmp_path: Path) -> None:
    _, gguf = write_both(tmp_path, PLAIN["gqa-4"])
    pack(gguf, tmp_path / "packed")
    content = bytearray(gguf.read_bytes())
    content[-40] ^= 1
    gguf.write_bytes(content)
    report = verify(tmp_path / "packed", gguf)
    assert not report.sound
    assert len(report.differences) == 1
    assert verify(gguf).sound


def test_originals_are_kept(tmp_path: Path) -> None:
    _, gguf = write_both(tmp_path, PLAIN["gqa-1"])
    with pytest.raises(UsageError, match="a GGUF model, which --replace does not delete"):
        pack(gguf, tmp_path / "packed", replace=True)


def test_packing_it_twice(tmp_path: Path) -> None:
    _, gguf = write_both(tmp_path, PLAIN["gqa-1"])
    pack(gguf, tmp_path / "packed")
    with pytest.raises(UsageError, match="is there already, and complete"):
        pack(gguf, tmp_path / "packed")


@pytest.mark.parametrize("beside", [300 << 20, 2 << 30])
def test_tokens_under_a_ceiling_and_with_a_draft(beside: int, tmp_path: Path) -> None:
    """`beside`: bytes beside the process itself, which other tests have made larger."""
    memory = machine.footprint().nbytes + beside
    checkpoint, gguf = write_both(tmp_path, PLAIN["biases"])
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3)
    with LLM.open(checkpoint) as plain, LLM.open(gguf, memory=memory, draft=str(gguf)) as drafted:
        prompt = random_tokens(10, 96)
        assert drafted.generate([prompt], params)[0].token_ids == plain.generate([prompt], params)[0].token_ids


class TestFiles:
    def test_parts(self, tmp_path: Path) -> None:
        config = config_of(PLAIN["biases"])
        tensors = write_checkpoint(tmp_path / "hf", config)
        parts = write_gguf_of(tmp_path / "m.gguf", config, tensors, parts=3)
        assert parts[1].name == "m-00002-of-00003.gguf"
        tokens = random_tokens(9, config["vocab_size"])
        for path in (parts[0], parts[2]):
            np.testing.assert_array_equal(bits(path, tokens), bits(tmp_path / "hf", tokens))
        assert len(open_checkpoint(parts[0]).files) == 3

    def test_a_part_is_missing(self, tmp_path: Path) -> None:
        config = tiny_config()
        parts = write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), parts=3)
        parts[1].unlink()
        check_refused(parts[0], CheckpointError, "lacks m-00002-of-00003.gguf", "Complete the download")

    def test_parts_of_another_order(self, tmp_path: Path) -> None:
        config = tiny_config()
        first, second = write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), parts=2)
        second.write_bytes(first.read_bytes())
        check_refused(first, CheckpointError, "is part 0 of 2 by its metadata, not part 1 of 2", "names")

    def test_one_part_alone(self, tmp_path: Path) -> None:
        config = tiny_config()
        first, _ = write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), parts=2)
        alone = first.rename(tmp_path / "alone.gguf")
        check_refused(alone, CheckpointError, "is part 0 of 2 by its metadata, not part 0 of 1")

    def test_a_tensor_in_two_parts(self, tmp_path: Path) -> None:
        config = tiny_config()
        parts = write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), parts=2)
        split = {"split.no": 1, "split.count": 2}
        parts[1].write_bytes(gguf_bytes(split, {"token_embd.weight": np.zeros((4, 4), np.float32)}))
        check_refused(parts[0], FormatError, "The tensor 'token_embd.weight' is in")

    def test_a_directory(self, tmp_path: Path) -> None:
        _, gguf = write_both(tmp_path, PLAIN["gqa-1"])
        (tmp_path / "alone").mkdir()
        gguf.rename(tmp_path / "alone" / gguf.name)
        (tmp_path / "alone" / "mmproj-model.gguf").write_bytes(b"GGUF")
        assert open_checkpoint(tmp_path / "alone").files == (tmp_path / "alone" / gguf.name,)

    def test_a_directory_with_several(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        (tmp_path / "b.gguf").write_bytes(b"GGUF")
        check_refused(tmp_path, CheckpointError, "has several GGUF models: 'a.gguf', 'b.gguf'", "file of one of them")

    def test_safetensors_come_first(self, tmp_path: Path) -> None:
        checkpoint, gguf = write_both(tmp_path, PLAIN["gqa-1"])
        gguf.rename(checkpoint / "model.gguf")
        assert open_checkpoint(checkpoint).files == (checkpoint / "model.safetensors",)


class TestContents:
    def test_quantized(self, tmp_path: Path) -> None:
        infos = [Info("a.weight", (256, 2), 12, 0), Info("b.weight", (256, 2), 12, 288), Info("c.weight", (4,), 0, 576)]
        (tmp_path / "q.gguf").write_bytes(header_bytes({"general.architecture": "llama"}, infos) + b"\0" * 700)
        message = "holds 2 tensors as Q4_K ('a.weight' is one): quantized, not the full-precision weights"
        check_refused(tmp_path / "q.gguf", UnsupportedError, message, "Use a BF16, F16 or F32 GGUF of the model")

    def test_an_unknown_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(gguf_bytes({"general.architecture": "mamba"}, {}))
        check_refused(tmp_path / "m.gguf", UnsupportedError, "the architecture is 'mamba'", "llama, qwen2")

    def test_no_model(self, tmp_path: Path) -> None:
        content = gguf_bytes({"general.architecture": "clip", "general.type": "mmproj"}, {})
        (tmp_path / "m.gguf").write_bytes(content)
        check_refused(tmp_path / "m.gguf", UnsupportedError, "is a GGUF file of the type 'mmproj'")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"llama.expert_count": 8}, "llama.expert_count is 8"),
            ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window is 4096"),
            ({"llama.logit_scale": 2.0}, "llama.logit_scale is 2.0"),
            ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
            ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv is [2, 1], which differs between layers"),
            ({"llama.rope.dimension_count": 4}, "a part of each head turns"),
        ],
    )
    def test_what_is_not_run(self, more: dict[str, Any], message: str, tmp_path: Path) -> None:
        write_both(tmp_path, PLAIN["gqa-1"], more=more)
        check_refused(tmp_path / "model.gguf", UnsupportedError, message)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"llama.block_count": "two"}, "llama.block_count is 'two', not a positive integer"),
            ({"llama.attention.value_length": 9}, "attention.value_length is 9, not the length of a key, 8"),
            ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is nan, not a positive number"),
            ({"tokenizer.ggml.eos_token_id": -1}, "tokenizer.ggml.eos_token_id is -1"),
        ],
    )
    def test_what_cannot_be(self, more: dict[str, Any], message: str, tmp_path: Path) -> None:
        write_both(tmp_path, PLAIN["gqa-1"], more=more)
        with pytest.raises(FormatError) as caught:
            open_checkpoint(tmp_path / "model.gguf")
        assert message in caught.value.problem

    def test_a_missing_tensor(self, tmp_path: Path) -> None:
        config, tensors = tiny_config(), random_tensors(tiny_config())
        del tensors["model.layers.1.mlp.up_proj.weight"]
        write_gguf_of(tmp_path / "m.gguf", config, tensors)
        check_refused(tmp_path / "m.gguf", CheckpointError, "lacks the tensor 'model.layers.1.mlp.up_proj.weight'")

    def test_lists_and_unknown_keys(self, tmp_path: Path) -> None:
        more = {"llama.attention.head_count_kv": [4, 4], "llama.made_up": 1, "general.tags": ["a", "b"]}
        _, gguf = write_both(tmp_path, PLAIN["gqa-1"], more=more)
        messages = warnings_of(gguf)
        assert messages == [f"{gguf}: passing over unknown keys: 'llama.made_up'"]

    def test_a_norm_that_is_not_raised(self, tmp_path: Path) -> None:
        config = config_of(FAMILIES["gemma3"])
        tensors = random_tensors(config)
        write_gguf_of(tmp_path / "m.gguf", config, tensors)
        content = (tmp_path / "m.gguf").read_bytes()
        tensor = open_checkpoint(tmp_path / "m.gguf").tensors["model.norm.weight"]
        tiny = np.full(config["hidden_size"], 1e-10, np.float32).tobytes()
        (tmp_path / "m.gguf").write_bytes(content[: tensor.begin] + tiny + content[tensor.end :])
        with pytest.raises(FormatError, match=r"model.norm.weight' holds values that are not 1 and a weight"):
            LLM.open(tmp_path / "m.gguf")

    def test_factors_of_no_llama(self, tmp_path: Path) -> None:
        config = config_of(PLAIN["rope-llama3"])
        stored = write_gguf_with_factors(tmp_path / "f.gguf", config, np.full(16, 3.0, np.float32))
        check_refused(stored, UnsupportedError, "rope_freqs.weight scales frequencies as no known Llama 3 does")
        stored = write_gguf_with_factors(tmp_path / "f.gguf", config, np.ones(7, np.float32))
        check_refused(stored, FormatError, "rope_freqs.weight has shape (7,), not (16,)")
        stored = write_gguf_with_factors(tmp_path / "f.gguf", config, np.zeros(16, np.float32))
        check_refused(stored, FormatError, "rope_freqs.weight holds numbers that are not positive")


def write_gguf_with_factors(path: Path, config: dict[str, Any], factors: np.ndarray) -> Path:
    stored = converted(config, random_tensors(config)) | {"rope_freqs.weight": factors}
    path.write_bytes(gguf_bytes(metadata_of(config), stored))
    return path


class TestDefaults:
    def test_ends(self, tmp_path: Path) -> None:
        more = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 1}
        _, gguf = write_both(tmp_path, PLAIN["gqa-1"], more=more)
        assert generation_defaults(gguf).eos_token_ids == (1, 5)
        assert not generation_defaults(gguf).do_sample

    def test_recommended(self, tmp_path: Path) -> None:
        more = {"general.sampling.temp": 0.7, "general.sampling.top_p": 0.95, "general.sampling.top_k": 20}
        _, gguf = write_both(tmp_path, PLAIN["gqa-1"], more=more)
        defaults = generation_defaults(gguf)
        assert (defaults.do_sample, defaults.temperature, defaults.top_p, defaults.top_k) == (True, 0.7, 0.95, 20)
        pack(gguf, tmp_path / "packed")
        assert generation_defaults(tmp_path / "packed") == defaults
        assert json.loads((tmp_path / "packed" / "config.json").read_text())["rms_norm_eps"] == 1e-5


def test_a_batch_depends_on_its_tokenizer(tmp_path: Path) -> None:
    config = tiny_config()
    tensors, digests = random_tensors(config), []
    for token in ("a", "a", "b"):
        more = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [token]}
        write_gguf_of(tmp_path / "m.gguf", config, tensors, more)
        digests.append(model_digest(tmp_path / "m.gguf", ()))
    assert digests[0] == digests[1] != digests[2]
