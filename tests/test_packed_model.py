"""Models run from packed weights: the bits of the raw ones, and no wrong token from damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.assembled import commit, new_cache, open_engine, stage_of
from helpers.cases import Case, random_tokens
from helpers.checkpoints import random_tensors, tiny_config, to_float32, write_checkpoint
from helpers.numerics_oracles import same_bits
from helpers.rooms import keep_at_most
from helpers.thorough import quick
from penstock import LLM, SamplingParams, _core
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import F32
from penstock.errors import ChecksumError
from penstock.models.rows import Rows, SequenceRows
from penstock.packed_format.tensor import PackedTensor
from penstock.packing.pack import pack

# Matrices large enough to be packed, but for keys and values; rows that end amid a group of 64.
CONFIG = {
    "hidden_size": 280,
    "intermediate_size": 500,
    "vocab_size": 700,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 28,
    "num_hidden_layers": 2,
}
TOKENS = random_tokens(19, 700)


def packed(case: Case, folder: Path) -> tuple[Path, Path]:
    raw = case.write(folder / "raw")
    pack(raw, folder / "packed")
    return raw, folder / "packed"


@pytest.fixture(scope="module", params=quick(["one file"], ["one file", "tied, split", "shards, biases"]))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    case = {
        "one file": Case(CONFIG),
        "tied, split": Case(CONFIG | {"tie_word_embeddings": True}, files={"layout": "split"}),
        "shards, biases": Case(CONFIG | {"attention_bias": True, "mlp_bias": True}, files={"layout": "indexed"}),
    }[request.param]
    return packed(case, tmp_path_factory.mktemp("model"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A packed model whose file a test may damage."""
    return packed(Case(CONFIG), tmp_path)[1]


def logits(path: Path, *, chunk: int = len(TOKENS), **options: Any) -> F32:
    with open_engine(path, **options) as engine:
        return commit(engine, new_cache(engine), TOKENS, chunk)


def test_it_is_packed(pair: tuple[Path, Path]) -> None:
    raw, small = (open_checkpoint(path) for path in pair)
    assert raw.tensors.keys() == small.tensors.keys()
    weights = [tensor for name, tensor in small.tensors.items() if name.endswith("weight")]
    codecs = {t.name.split(".")[-2]: t.codec for t in weights if isinstance(t, PackedTensor)}
    assert {name for name, codec in codecs.items() if codec == "planes"} >= {"q_proj", "down_proj", "embed_tokens"}
    assert codecs["k_proj"] == codecs["norm"] == "raw"


@pytest.mark.parametrize(
    ("resident", "piece_bytes"),
    quick([(0, 1000), (0.7, 200_000)], [(0, 1000), (0.3, 1 << 20), (0.7, 200_000), (1, 1 << 20), (2, 200_000)]),
)
def test_the_same_logits_however_much_is_resident(pair: tuple[Path, Path], piece_bytes: int, resident: float) -> None:
    raw, small = pair
    expected = logits(raw)
    with open_engine(small, resident=resident, piece_bytes=piece_bytes, threads=2) as engine:
        for chunk in (19, 5, 1):
            assert same_bits(commit(engine, new_cache(engine), TOKENS, chunk), expected)


def test_the_same_logits_on_every_instruction_set(
    pair: tuple[Path, Path], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, small = pair
    monkeypatch.setenv("PENSTOCK_ISA", _core.isas()[0])
    expected = logits(raw)
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    for chunk in (19, 3):
        assert same_bits(logits(small, chunk=chunk), expected)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_types_run_as_they_are(tmp_path: Path, dtype: str) -> None:
    raw, small = packed(Case(CONFIG, dtype), tmp_path)
    assert same_bits(logits(small, resident=0.5), logits(raw))


def test_types_may_be_mixed(tmp_path: Path) -> None:
    """Gate packed, and up, which is walked beside it, as it is."""
    config = tiny_config(**CONFIG)
    tensors = random_tensors(config)
    up = "model.layers.0.mlp.up_proj.weight"
    tensors[up] = to_float32(tensors[up])
    write_checkpoint(tmp_path / "raw", config, tensors=tensors)
    pack(tmp_path / "raw", tmp_path / "packed")
    for resident in (0, 0.5):
        assert same_bits(logits(tmp_path / "packed", resident=resident), logits(tmp_path / "raw"))


def test_the_coarse_tier_stays_in_memory_first(own: Path) -> None:
    with open_engine(own) as engine:
        weights = stage_of(engine).weights
        coarse = {i for i, part in enumerate(weights._parts) if part.coarse}
        nbytes = sum(weights._parts[i].nbytes for i in coarse)
        for budget, kept in ((nbytes // 2, coarse), (nbytes, coarse), (nbytes * 3 // 2, None)):
            weights.limit_resident(budget)
            commit(engine, new_cache(engine), TOKENS[:1])
            assert budget - weights.resident_bytes < 0.2 * nbytes
            kept_only = weights._resident.keys() <= coarse
            assert kept_only if kept is not None else weights._resident.keys() > coarse


def test_a_model_that_fits_is_kept_in_indexed_rows(pair: tuple[Path, Path]) -> None:
    """With room enough, and as packed again when the room shrinks; matrices that are stored raw stay as they are."""
    raw, small = pair
    expected = logits(raw)
    with open_engine(small) as engine:
        weights = stage_of(engine).weights
        assert weights.pass_bytes < weights.indexed_bytes < 1.3 * weights.pass_bytes
        for budget, indexed in ((weights.indexed_bytes, True), (weights.indexed_bytes - 1, False), (1 << 30, True)):
            weights.limit_resident(budget)
            assert same_bits(commit(engine, new_cache(engine), TOKENS, 7), expected)
            assert bool(weights._indexed) is indexed
            assert weights.streamed_bytes == 0
            assert weights.resident_bytes <= budget
            before = weights.totals.bytes_read
            assert same_bits(commit(engine, new_cache(engine), TOKENS), expected)
            assert weights.totals.bytes_read == before, "a pass read what is in memory"
        weights.limit_resident(0)
        assert (weights.resident_bytes, weights.streamed_bytes) == (0, weights.pass_bytes)


def test_exponents_too_wild_for_indexed_rows(tmp_path: Path) -> None:
    """They would take more room than was planned for, so the model stays packed."""
    config = tiny_config(**CONFIG)
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            tensor[:, ::40] ^= 0x1800  # other exponents in nearly every group
    write_checkpoint(tmp_path / "raw", config, tensors=tensors)
    pack(tmp_path / "raw", tmp_path / "packed")
    with open_engine(tmp_path / "packed", resident=2) as engine:
        weights = stage_of(engine).weights
        budget = weights.indexed_bytes
        weights.limit_resident(budget)
        for _ in range(2):
            assert same_bits(commit(engine, new_cache(engine), TOKENS), logits(tmp_path / "raw"))
            assert weights.resident_bytes <= budget
        assert not weights._indexed


def streams(path: Path, kind: str) -> list[tuple[str, int, int]]:
    """(tensor, where its bytes of that kind begin in the file, how many)."""
    found = []
    for tensor in open_checkpoint(path).tensors.values():
        assert isinstance(tensor, PackedTensor)
        if kind == "raw" and tensor.codec == "raw":
            extent = tensor.fine_extent(0, tensor.n_chunks)
        elif kind != "raw" and tensor.codec == "planes":
            extent = (tensor.coarse_extent if kind == "coarse" else tensor.fine_extent)(0, tensor.n_chunks)
        else:
            continue
        found.append((tensor.name, extent.offset, extent.nbytes))
    return found


@contextmanager
def flipped_bit(path: Path, offset: int, bit: int) -> Iterator[None]:
    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            (value,) = file.read(1)
            file.seek(offset)
            file.write(bytes([value ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


def use_everything(path: Path) -> None:
    """One pass over all weights, with every row of the embedding."""
    with LLM.open(path, memory="16GiB", threads=2) as llm:
        cache = llm.new_cache()
        llm.chain.run(Rows([SequenceRows.plain(cache, range(700), [0])]))


@pytest.mark.parametrize("kind", quick(["fine", "raw"], ["coarse", "fine", "raw"]))
def test_a_flipped_bit_gives_no_token(own: Path, kind: str) -> None:
    file, rng = own / "model.safetensors", np.random.default_rng(0)
    for name, begin, nbytes in streams(own, kind):
        with (
            flipped_bit(file, begin + int(rng.integers(nbytes)), int(rng.integers(8))),
            pytest.raises(ChecksumError) as caught,
        ):
            use_everything(own)
        assert caught.value.problem.startswith(f"{file}: tensor '{name}', ")
        assert "the checksum does not match" in caught.value.problem


def test_a_bit_that_flips_in_mid_run_ends_the_generation(own: Path) -> None:
    """And a sound file runs on."""
    file = own / "model.safetensors"
    name, begin, _ = next(found for found in streams(own, "fine") if "layers.1.mlp.up" in found[0])
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with LLM.open(own, memory="16GiB") as llm:
        keep_at_most(llm, 0)
        expected = llm.generate([TOKENS], params)[0].token_ids
        stream = llm.stream(TOKENS, params)
        tokens = [*next(stream).token_ids]
        with flipped_bit(file, begin + 5, 3), pytest.raises(ChecksumError, match=name):
            tokens.extend(token for piece in stream for token in piece.token_ids)
        assert tokens == expected[: len(tokens)]
        assert llm.generate([TOKENS], params)[0].token_ids == expected
