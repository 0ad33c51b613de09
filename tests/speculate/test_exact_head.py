from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.checkpoints import random_tensors, tiny_config, to_float32
from helpers.drafting import PACKABLE, keep, open_to_draft, pass_over, write_pair
from helpers.packed_files import flip
from penstock.compute import codec
from penstock.errors import ReadError
from penstock.models.decoder import Decoder
from penstock.packed_format.tensor import PackedTensor
from penstock.speculate.exact_head import ExactRows
from penstock.weights.weights import Weights

HEAD, VOCAB, COLS, FEW = "lm_head.weight", 700, 280, 60


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pair(tmp_path)[1]


@pytest.fixture
def opened(own: Path) -> Iterator[tuple[Decoder, Weights]]:
    """Its coarse tier is in memory."""
    with open_to_draft(own, resident=1) as (model, weights):
        pass_over(model)
        yield model, weights


@pytest.fixture
def rows(opened: tuple[Decoder, Weights]) -> ExactRows:
    model, weights = opened
    return ExactRows(weights, HEAD, model.kernels, lambda logits: None)


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return to_float32(random_tensors(tiny_config(**PACKABLE))[HEAD])


def hidden(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, COLS), dtype=np.float32)


def test_every_row_is_exact(rows: ExactRows, head: np.ndarray) -> None:
    for begin in range(0, VOCAB, 50):
        tokens = np.arange(begin, begin + 50)[None]
        rows.refine(hidden(1), tokens, np.zeros((1, 50), np.float32))
    for token in range(VOCAB):
        assert rows._kept[token].tobytes() == head[token].tobytes()


def test_logits_of_the_tokens_that_are_asked_for(rows: ExactRows, head: np.ndarray) -> None:
    x, tokens = hidden(3), np.array([[0, 5, 699], [5, 6, 7], [5, 6, 699]])
    logits = np.full((3, 3), 99, np.float32)
    rows.refine(x, tokens, logits)
    expected = np.stack([x[i] @ head[tokens[i]].T for i in range(3)])
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_rows_are_read_once(rows: ExactRows, opened: tuple[Decoder, Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, logits = np.array([[3, 4]]), np.zeros((1, 2), np.float32)
    rows.refine(hidden(1), tokens, logits)
    monkeypatch.setattr(Weights, "read_single", lambda *_: pytest.fail("read again"))
    again = np.zeros_like(logits)
    rows.refine(hidden(1), tokens, again)
    assert again.tobytes() == logits.tobytes()


def test_those_that_were_not_wanted_for_long_are_dropped(rows: ExactRows) -> None:
    rows._most = 64
    for token in range(100):
        rows.refine(hidden(1), np.array([[0, token]]) if token else np.array([[0]]), np.zeros((1, 2), np.float32))
    assert len(rows._kept) == 64
    assert 0 in rows._kept
    assert 1 not in rows._kept


def test_without_the_coarse_tier_logits_stay(rows: ExactRows, opened: tuple[Decoder, Weights]) -> None:
    keep(opened[1], 0)
    logits = np.full((1, 2), 99, np.float32)
    rows.refine(hidden(1), np.array([[3, 4]]), logits)
    assert (logits == 99).all()


def test_it_comes_back(rows: ExactRows, opened: tuple[Decoder, Weights], head: np.ndarray) -> None:
    model, weights = opened
    for share in (0, 1):
        keep(weights, share)
        pass_over(model)
    logits = np.zeros((1, 2), np.float32)
    rows.refine(hidden(1), np.array([[3, 4]]), logits)
    assert np.allclose(logits, hidden(1) @ head[[3, 4]].T, atol=1e-4)


def test_a_matrix_that_is_not_in_two_tiers(opened: tuple[Decoder, Weights], tmp_path: Path) -> None:
    model, weights = opened
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.norm.weight"):
        with pytest.raises(ValueError, match=f"{name} is not packed in two tiers"):
            ExactRows(weights, name, model.kernels, lambda logits: None)
    with open_to_draft(tmp_path / "raw") as (raw, weights), pytest.raises(ValueError, match="not packed"):
        ExactRows(weights, HEAD, raw.kernels, lambda logits: None)


class TestDamage:
    """Nothing checks what is read, since it only orders guesses; but nothing may come of it but wrong guesses."""

    def test_a_flipped_bit_anywhere(self, own: Path, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        tensor, rng = weights.tensors[HEAD], np.random.default_rng(0)
        assert isinstance(tensor, PackedTensor)
        extent = tensor.fine_extent(0, tensor.n_chunks)
        places = rng.integers(extent.offset, extent.offset + FEW * COLS, 12).tolist()
        # The offsets of rows, which say where the rest is.
        offsets = codec.row_offsets_bytes(FEW)
        places += rng.integers(extent.offset, extent.offset + offsets, 12).tolist()
        file = own / "model.safetensors"
        for place in places:
            bit = int(rng.integers(8))
            flip(file, place, bit)
            rows = ExactRows(weights, HEAD, model.kernels, lambda logits: None)
            rows.refine(hidden(1), np.arange(FEW)[None], np.zeros((1, FEW), np.float32))
            flip(file, place, bit)

    @pytest.mark.parametrize("content", [0x00, 0xFF, None])
    def test_garbage(self, own: Path, opened: tuple[Decoder, Weights], content: int | None) -> None:
        model, weights = opened
        tensor, rng = weights.tensors[HEAD], np.random.default_rng(1)
        assert isinstance(tensor, PackedTensor)
        extent = tensor.fine_extent(0, tensor.n_chunks)
        garbage = rng.bytes(extent.nbytes) if content is None else bytes([content]) * extent.nbytes
        with (own / "model.safetensors").open("r+b") as file:
            file.seek(extent.offset)
            file.write(garbage)
        rows, logits = ExactRows(weights, HEAD, model.kernels, lambda logits: None), np.full((1, FEW), 99, np.float32)
        rows.refine(hidden(1), np.arange(FEW)[None], logits)

    def test_a_file_that_ends_early(self, own: Path, opened: tuple[Decoder, Weights]) -> None:
        """That is an error of reading, as it would be for the pass."""
        model, weights = opened
        tensor = weights.tensors[HEAD]
        assert isinstance(tensor, PackedTensor)
        with (own / "model.safetensors").open("r+b") as file:
            file.truncate(tensor.fine_extent(0, 1).offset)
        with pytest.raises(ReadError):
            ExactRows(weights, HEAD, model.kernels, lambda logits: None).refine(
                hidden(1), np.array([[3]]), np.zeros((1, 1), np.float32)
            )
