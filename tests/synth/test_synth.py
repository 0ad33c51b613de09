from __future__ import annotations

import json
import warnings
from collections import namedtuple
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import typer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors import deserialize
from typer.testing import CliRunner

from helpers.checkpoints import tiny_config
from helpers.reference import Reference
from helpers.thorough import quick
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.cli.synth import synth as synth_command
from penstock.errors import PenstockError, UsageError
from penstock.safetensors_header import read_header
from penstock.synth import synth
from penstock.synth.shapes import SHAPES, shape_config
from penstock.synth.synth import U16, plan_shards, synthesize, to_bf16
from penstock.synth.tokenizer import first_unused_id, tokenizer_config_json, tokenizer_json
from penstock.text.chat_template import ChatTemplate

# Numbers of weights that the Hub shows for these models; the 405B's from arXiv 2407.21783 by the same arithmetic.
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo": 12_247_782_400,
    "mistral-small": 23_572_403_200,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
    "smollm3-3b": 3_075_098_624,
    "granite-3.3-2b": 2_533_539_840,
    "granite-3.3-8b": 8_170_864_640,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "olmoe-1b-7b": 6_919_161_856,
    "mixtral-8x7b": 46_702_792_704,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "glm-4.5-air": 106_852_251_264,  # of 110,468,824,832, those of the layer that predicts further tokens left out
}


def small_config(**changes: Any) -> dict[str, Any]:
    """A Llama 3 in miniature: 400 tokens, of which the last 40 are special."""
    ids = {"vocab_size": 400, "bos_token_id": 360, "eos_token_id": [361, 368, 369]}
    return tiny_config(**ids, hidden_size=64, intermediate_size=192, **changes)


def bits_of(path: Path) -> dict[str, U16]:
    """Every tensor's BF16 bits, by Penstock's own reader."""
    tensors = open_checkpoint(path).tensors
    return {
        name: np.fromfile(info.path, np.uint16, info.n_elements, offset=info.begin).reshape(info.shape)
        for name, info in tensors.items()
    }


def exponent_shares(bits: U16) -> np.ndarray:
    """Shares of the exponents that occur, largest first."""
    counts = np.bincount((bits.ravel() >> 7) & 0xFF)
    return np.sort(counts[counts > 0] / bits.size)[::-1]


def entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log2(shares)).sum())


def full_size_rows(shape: str, tensor: str, n_weights: int = 1 << 21) -> U16:
    """The first rows of a tensor of a full-size model, as `synthesize` draws them."""
    config = parse_config(SHAPES[shape], shape)
    shard = synth.Shard("", {tensor: Architecture(config).tensors[tensor]})
    blocks, drawn = [], 0
    for draw in synth._iter_blocks(config, 0, shard):
        blocks.append(draw())
        drawn += blocks[-1].size
        if drawn >= n_weights:
            break
    return np.concatenate(blocks)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "small"
    synthesize(small_config(), path, threads=2)
    return path


@pytest.fixture(scope="module")
def llama3_tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer of full size."""
    config = parse_config(SHAPES["llama-3.1-8b"], "llama-3.1-8b")
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(config)))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_configs_of_the_published_size(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse_config(SHAPES[name], name)
    assert sum(prod(shape) for shape in Architecture(config).tensors.values()) == PARAMETERS[name]


def test_shape_names_may_be_in_capitals_and_layers_be_cut() -> None:
    assert shape_config("Llama-3.1-8B") == SHAPES["llama-3.1-8b"]
    assert shape_config("llama-3.1-8b", 2) == {**SHAPES["llama-3.1-8b"], "num_hidden_layers": 2}


def test_unknown_shapes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no shape named 'gpt-2'") as caught:
        shape_config("gpt-2")
    assert all(name in caught.value.remedy for name in SHAPES)


@pytest.mark.parametrize("layers", [-1, 0, 33])
def test_impossible_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(UsageError, match=f"cannot be cut to {layers} layers\nChoose a number from 1 to 32"):
        shape_config("llama-3.1-8b", layers)


def test_shards_have_the_sizes_of_those_on_the_hub() -> None:
    shards = plan_shards(parse_config(SHAPES["llama-3.1-8b"], ""))
    assert [shard.name for shard in shards] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    sizes = [len(shard.header()) + shard.data_bytes for shard in shards]
    assert sizes == [4_976_698_672, 4_999_802_720, 4_915_916_176, 1_168_138_808]


def test_a_model_that_fits_one_shard_has_the_plain_name(small: Path) -> None:
    names = {file.name for file in small.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"model.safetensors", "config.json", "generation_config.json", *tokenizer}


def test_checkpoints_open_without_warnings(small: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = open_checkpoint(small)
    assert checkpoint.config == parse_config(small_config(), "")


def test_the_safetensors_library_reads_the_same_bits(tmp_path: Path) -> None:
    synthesize(small_config(), tmp_path, shard_bytes=100_000, tokenizer=False)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    ours = bits_of(tmp_path)
    assert index["weight_map"].keys() == ours.keys()
    assert index["metadata"]["total_size"] == sum(bits.nbytes for bits in ours.values())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        for name, tensor in deserialize(file.read_bytes()):
            assert index["weight_map"][name] == file.name
            assert (tensor["dtype"], tuple(tensor["shape"])) == ("BF16", ours[name].shape)
            assert bytes(tensor["data"]) == ours[name].tobytes()
        assert read_header(file).data_begin % 8 == 0


def test_bytes_do_not_depend_on_threads(small: Path, tmp_path: Path) -> None:
    synthesize(small_config(), tmp_path / "one", threads=1)
    synthesize(small_config(), tmp_path / "seven", threads=7)
    for file in small.iterdir():
        assert (tmp_path / "one" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "seven" / file.name).read_bytes() == file.read_bytes()


def test_seeds_give_other_weights_and_fewer_layers_the_same(small: Path, tmp_path: Path) -> None:
    synthesize(small_config(), tmp_path / "seed", seed=1)
    synthesize(small_config(num_hidden_layers=1), tmp_path / "cut")
    full, other, cut = bits_of(small), bits_of(tmp_path / "seed"), bits_of(tmp_path / "cut")
    assert not any(np.array_equal(full[name], other[name]) for name in full)
    assert len(cut) < len(full)
    assert all(np.array_equal(full[name], cut[name]) for name in cut)


def test_no_stretch_of_weights_repeats(small: Path) -> None:
    drawn = np.concatenate([bits.ravel() for bits in bits_of(small).values() if bits.ndim == 2])
    assert drawn.size % 4 == 0
    for start in range(4):  # four weights have some 42 bits of entropy: none of these 30,000 should meet another
        stretches = np.roll(drawn, -start).view(np.uint64)
        assert len(np.unique(stretches)) == len(stretches)


@pytest.mark.parametrize(
    "tensor", ["model.layers.0.self_attn.q_proj", "model.layers.31.mlp.down_proj", "model.embed_tokens", "lm_head"]
)
def test_exponents_have_the_entropy_of_trained_ones(tensor: str) -> None:
    shares = exponent_shares(full_size_rows("llama-3.1-8b", f"{tensor}.weight"))
    assert 2.58 <= entropy(shares) <= 2.62
    for count, published in ((3, 0.725), (7, 0.967), (8, 0.983), (16, 0.99985)):
        assert shares[:count].sum() == pytest.approx(published, abs=0.025)


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "llama-3.2-1b", "smollm2-360m"])
def test_so_have_those_of_the_whole_model(shape: str) -> None:
    tensors = Architecture(parse_config(SHAPES[shape], shape)).tensors
    names = [name for name, size in tensors.items() if len(size) == 2 and (".layers." not in name or ".1." in name)]
    layers = SHAPES[shape]["num_hidden_layers"]
    counts = np.zeros(256)
    for name in names:
        sample = full_size_rows(shape, name, 1 << 20)
        weight = prod(tensors[name]) * (layers if ".layers." in name else 1) / sample.size
        counts += weight * np.bincount((sample.ravel() >> 7) & 0xFF, minlength=256)
    assert 2.58 <= entropy(counts[counts > 0] / counts.sum()) <= 2.62


def test_signs_and_mantissas_are_nearly_incompressible() -> None:
    drawn = full_size_rows("llama-3.1-8b", "lm_head.weight")
    low = (drawn & 0x7F) | ((drawn >> 15) << 7)
    assert 7.9 < entropy(np.bincount(low.ravel(), minlength=256) / drawn.size) <= 8
    assert 10.45 < entropy(np.unique(drawn, return_counts=True)[1] / drawn.size) < 10.7


def test_rows_and_columns_differ_in_scale() -> None:
    drawn = full_size_rows("llama-3.1-8b", "model.layers.0.mlp.up_proj.weight")
    values = (drawn.astype(np.uint32) << 16).view(np.float32)
    for axis in (0, 1):
        spread = np.log(np.sqrt((values**2).mean(axis=axis))).std()
        assert 0.12 < spread < 0.2


def test_unused_tokens_have_rows_of_next_to_nothing(small: Path) -> None:
    config = parse_config(small_config(), "")
    assert first_unused_id(config) == 371
    embedding = (bits_of(small)["model.embed_tokens.weight"].astype(np.uint32) << 16).view(np.float32)
    assert np.abs(embedding[371:]).max() < 1e-16
    assert np.abs(embedding[:371]).max(axis=1).min() > 1e-3


def test_norms_are_near_one(small: Path) -> None:
    for name, bits in bits_of(small).items():
        if bits.ndim == 1:
            values = (bits.astype(np.uint32) << 16).view(np.float32)
            assert abs(values.mean() - 1) < 0.05, name
            assert 0.05 < values.std() < 0.15, name


def test_biases_are_near_zero(tmp_path: Path) -> None:
    synthesize(small_config(attention_bias=True), tmp_path, tokenizer=False)
    bias = (bits_of(tmp_path)["model.layers.0.self_attn.q_proj.bias"].astype(np.uint32) << 16).view(np.float32)
    assert abs(bias.mean()) < 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_activations_neither_vanish_nor_explode(tied: bool, tmp_path: Path) -> None:
    config = small_config(num_hidden_layers=32, tie_word_embeddings=tied)
    synthesize(config, tmp_path)
    logits = Reference(tmp_path).forward([360, *range(20), 399])
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 3


@given(st_numpy.arrays(np.float32, 16, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_rounding_is_to_the_nearest_bf16_ties_to_even(values: np.ndarray) -> None:
    exact = values.astype(np.float64)
    low = values.view(np.uint32) >> 16
    below = (low << 16).view(np.float32).astype(np.float64)
    above = ((low + 1) << 16).view(np.float32).astype(np.float64)
    up = np.abs(above - exact), np.abs(exact - below)
    expected = low + ((up[0] < up[1]) | ((up[0] == up[1]) & (low % 2 == 1)))
    assert np.array_equal(to_bf16(values.copy()), expected)


@pytest.mark.parametrize("shape", quick(["smollm2-360m"], ["llama-3.1-8b", "smollm2-360m"]))
def test_tokenizers_have_an_entry_for_every_row(shape: str) -> None:
    config = parse_config(SHAPES[shape], shape)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(config)))
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(config.vocab_size))


def test_llama3_special_tokens_have_their_ids(llama3_tokenizer: tokenizers.Tokenizer) -> None:
    ids = {
        "<|begin_of_text|>": 128000,
        "<|end_of_text|>": 128001,
        "<|start_header_id|>": 128006,
        "<|end_header_id|>": 128007,
        "<|eom_id|>": 128008,
        "<|eot_id|>": 128009,
        "<|python_tag|>": 128010,
        "<|reserved_special_token_3|>": 128011,
        "<|reserved_special_token_247|>": 128255,
    }
    assert {token: llama3_tokenizer.token_to_id(token) for token in ids} == ids
    assert llama3_tokenizer.encode("a").ids[0] == 128000


@given(text=st.text())
def test_any_text_survives_encoding(llama3_tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = llama3_tokenizer.encode(text, add_special_tokens=False).ids
    assert llama3_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_text_takes_about_as_many_tokens_as_with_a_real_tokenizer(llama3_tokenizer: tokenizers.Tokenizer) -> None:
    text = "The weights flow from the disk past the arithmetic, once for each forward pass of the model. 日本語 한국어"
    assert 2.5 < len(text) / len(llama3_tokenizer.encode(text, add_special_tokens=False).ids) < 5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            "llama-3.1-8b",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("smollm2-360m", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_chat_templates_write_the_familys_form(shape: str, expected: str) -> None:
    config = tokenizer_config_json(parse_config(SHAPES[shape], shape))
    template = ChatTemplate(config["chat_template"], {"bos_token": config["bos_token"]})
    assert template.render([{"role": "user", "content": "Hi"}]) == expected


def test_generation_stops_at_the_shapes_tokens(small: Path) -> None:
    generation = json.loads((small / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [361, 368, 369]


@pytest.mark.parametrize("changes", [{"vocab_size": 260}, {"vocab_size": 300, "bos_token_id": 20}])
def test_vocabularies_too_small_for_a_tokenizer_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    config = tiny_config(**changes)
    with pytest.raises(UsageError, match=f"of {changes['vocab_size']} entries has no room for a byte-level"):
        synthesize(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    synthesize(config, tmp_path / "out", tokenizer=False)


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesize(small_config(), tmp_path, tokenizer=False, on_progress=lambda done, total: seen.append((done, total)))
    total = sum(bits.nbytes for bits in bits_of(tmp_path).values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    with pytest.raises(PenstockError, match=r"out needs 16,[\d,]+ bytes of disk and has 5,000,000\nFree some"):
        synthesize(shape_config("llama-3.1-8b"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(UsageError, match="is there already and is not an empty directory\nChoose a name"):
        synthesize(small_config(), tmp_path)
    with pytest.raises(UsageError, match="precious is there already and is not an empty directory"):
        synthesize(small_config(), tmp_path / "precious")
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_cannot_be_finished_is_removed(failure: BaseException, made: bool, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise failure

    out = tmp_path / "out"
    if made:
        out.mkdir()
    expected = PenstockError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        synthesize(small_config(), out, shard_bytes=100_000, on_progress=fail)
    if isinstance(caught.value, PenstockError):
        assert str(caught.value).startswith(f"{out} cannot be written: No space left on device\nCheck the disk")
    assert out.exists() == made
    assert not made or not list(out.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": -1}, "the seed -1 is out of range"),
        ({"seed": 1 << 64}, "is out of range\nGive a number from 0"),
        ({"threads": 0}, "0 threads cannot do anything\nGive at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(option: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        synthesize(small_config(), tmp_path / "out", **option)


def test_the_command_writes_a_checkpoint_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.synth.shapes.SHAPES", {"small": small_config()})
    app = typer.Typer()
    app.command()(synth_command)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(out), "--shape", "small", "--layers", "1", "--seed", "3", "--no-tokenizer"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: small, 0.00 GB\n"
    assert {file.name for file in out.iterdir()} == {"model.safetensors", "config.json", "generation_config.json"}
    assert open_checkpoint(out).config.num_hidden_layers == 1
