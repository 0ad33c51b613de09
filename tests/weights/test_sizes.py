from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import pytest

from helpers.cases import CASES
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.memory.budget import choose_ring
from penstock.packing.pack import pack
from penstock.synth.shapes import SHAPES, shape_config
from penstock.synth.synth import synthesize
from penstock.weights.sizes import (
    COARSE_RATIO,
    Matrix,
    StoredSize,
    holds_packed,
    matrix_of,
    packed_size,
    pass_matrices,
    raw_size,
    size_here,
)

WIDE = tiny_config(hidden_size=256, intermediate_size=768, num_attention_heads=8, head_dim=32, vocab_size=300)
"""Its projections of keys and values are too small to be packed, the rest is not."""


def sizes_here(path: Path) -> tuple[StoredSize, list[Matrix]]:
    checkpoint = open_checkpoint(path)
    tensors = [checkpoint.tensors[name] for name in Architecture(checkpoint.config).pass_order]
    return size_here(tensors), [matrix_of(tensor) for tensor in tensors]


def test_the_8b() -> None:
    matrices = pass_matrices(parse_config(shape_config("llama-3.1-8b"), "shape"))
    raw, packed = raw_size(matrices), packed_size(matrices)
    assert raw == StoredSize(15_009_316_864, 15_009_316_864)
    assert packed is not None
    assert packed.estimated
    assert packed.decoded == packed.raw == raw.raw
    assert packed.ratio == pytest.approx(0.6731, abs=0.0005)
    assert packed.coarse == pytest.approx(2.81e9, rel=0.01)
    assert 0.45 * 2**20 < packed.chunk < 0.55 * 2**20


@pytest.mark.parametrize("name", SHAPES)
def test_a_chunk_is_no_reason_for_a_larger_ring(name: str) -> None:
    packed = packed_size(pass_matrices(parse_config(shape_config(name), "shape")))
    assert packed is not None
    assert choose_ring(1 << 29, packed.chunk) == choose_ring(1 << 29)


@pytest.mark.parametrize(("dtype", "raw"), [("F16", 2), ("F32", 4)])
def test_other_types_do_not_pack(dtype: str, raw: int) -> None:
    matrices = pass_matrices(parse_config(shape_config("smollm2-135m"), "shape"), dtype)
    assert packed_size(matrices) is None
    assert (
        raw_size(matrices).nbytes
        == raw * raw_size(pass_matrices(parse_config(shape_config("smollm2-135m"), ""))).nbytes // 2
    )


def test_what_does_not_pack_stays_as_it_is() -> None:
    large, small, other = (
        Matrix("a", (256, 256), "BF16"),
        Matrix("b", (255, 256), "BF16"),
        Matrix("c", (512, 256), "F32"),
    )
    packed = packed_size([large, small, other])
    assert packed is not None
    assert packed.decoded == large.nbytes == 131_072
    assert packed.nbytes == large.packed_nbytes + small.nbytes + other.nbytes
    assert packed.coarse == 131_072 * COARSE_RATIO


@pytest.mark.parametrize("name", ["gqa-4", "f16", "f32", "tied"])
def test_a_raw_checkpoint(tmp_path: Path, name: str) -> None:
    size, matrices = sizes_here(CASES[name].write(tmp_path))
    assert size == raw_size(matrices)
    assert not size.estimated


def test_a_packed_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "raw", WIDE)
    pack(tmp_path / "raw", tmp_path / "packed")
    (raw, matrices), (size, same) = sizes_here(tmp_path / "raw"), sizes_here(tmp_path / "packed")
    assert same == matrices
    estimate = packed_size(matrices)
    assert estimate is not None
    assert (size.raw, size.decoded, size.estimated) == (raw.nbytes, estimate.decoded, False)
    assert size.nbytes == pytest.approx(estimate.nbytes, rel=0.03)
    assert size.coarse == pytest.approx(estimate.coarse, rel=0.1)
    assert size.chunk == pytest.approx(estimate.chunk, rel=0.2)
    assert [holds_packed(open_checkpoint(tmp_path / of).tensors.values()) for of in ("raw", "packed")] == [False, True]


@pytest.mark.parametrize(("hidden", "inner"), [(576, 1536), (2048, 8192), (4096, 2048)])
def test_the_estimate_is_what_packing_gives(tmp_path: Path, hidden: int, inner: int) -> None:
    """Of synthetic weights in rows as long as in the models that are known by name."""
    config = tiny_config(
        hidden_size=hidden, intermediate_size=inner, num_attention_heads=8, head_dim=64, num_hidden_layers=1
    )
    synthesize(config, tmp_path / "raw", tokenizer=False)
    pack(tmp_path / "raw", tmp_path / "packed")
    size, matrices = sizes_here(tmp_path / "packed")
    estimate = packed_size(matrices)
    assert estimate is not None
    assert size.ratio == pytest.approx(estimate.ratio, abs=0.004)


def test_a_packed_checkpoint_of_which_nothing_packs(tmp_path: Path) -> None:
    CASES["f16"].write(tmp_path / "raw")
    pack(tmp_path / "raw", tmp_path / "packed")
    size, matrices = sizes_here(tmp_path / "packed")
    assert (size.raw, size.decoded, size.coarse) == (raw_size(matrices).nbytes, 0, 0)
    assert not holds_packed(open_checkpoint(tmp_path / "packed").tensors.values())


class TestSums:
    @pytest.mark.parametrize("form", [raw_size, packed_size])
    def test_of_layers_are_those_of_the_model(self, form: Callable[[Sequence[Matrix]], StoredSize | None]) -> None:
        matrices = pass_matrices(parse_config(shape_config("smollm2-135m"), "shape"))
        whole, parts = form(matrices), [form(matrices[:7]), form(matrices[7:100]), form(matrices[100:])]
        assert reduce(add, parts) == whole  # type: ignore[arg-type]

    def test_what_is_not_packed_is_kept_as_it_is_beside_indexed_rows(self) -> None:
        raw, packed = StoredSize(100, 100), StoredSize(67, 100, 100, coarse=20, chunk=5, indexed=77, experts=7)
        assert raw + packed == packed + raw == StoredSize(167, 200, 100, coarse=20, chunk=5, indexed=177, experts=7)
        assert (raw + raw).indexed == 0
