from __future__ import annotations

from pathlib import Path

import pytest

from penstock.architectures.names import is_embedding
from penstock.compute.codec import coarse_bytes
from penstock.packed_format.layout import Cut, coarse_stream_bytes, cut, padded, stream_names
from penstock.safetensors_header import DType, TensorInfo


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("BF16", (256, 256), Cut("planes", 256, 256, 512)),
        ("BF16", (255, 257), Cut("raw", 255, 257, 514)),
        ("BF16", (1, 262_144), Cut("planes", 1, 262_144, 524_288)),
        ("BF16", (2, 262_145), Cut("raw", 1_048_580, 1, 1)),
        ("BF16", (65_536,), Cut("raw", 1, 65_536, 131_072)),
        ("BF16", (4, 128, 256), Cut("raw", 1, 131_072, 262_144)),
        ("BF16", (4, 1024, 256), Cut("raw", 2_097_152, 1, 1)),
        ("F16", (256, 256), Cut("raw", 256, 256, 512)),
        ("F32", (3, 5), Cut("raw", 3, 5, 20)),
        ("F4", (3, 4), Cut("raw", 3, 4, 2)),
        ("F4", (4, 3), Cut("raw", 6, 1, 1)),
        ("F64", (), Cut("raw", 1, 1, 8)),
        ("BF16", (0, 300), Cut("raw", 0, 1, 1)),
        ("BF16", (300, 0), Cut("raw", 0, 1, 1)),
        ("U8", (0,), Cut("raw", 0, 1, 1)),
    ],
)
def test_rows_of_a_tensor(dtype: str, shape: tuple[int, ...], expected: Cut) -> None:
    n_bits = DType(dtype).bits
    for size in shape:
        n_bits *= size
    info = TensorInfo("w", DType(dtype), shape, Path("x"), 0, n_bits // 8)
    assert cut(info, 1) == expected
    assert len(shape) == 3 or cut(info, 2) == expected
    assert expected.rows * expected.row_bytes == info.nbytes


@pytest.mark.parametrize(
    ("cols", "name", "expected"),
    [(4096, "w", 128), (4096, "model.embed_tokens.weight", 4), (14336, "w", 36), (262_144, "w", 2), (1, "w", 524_288)],
)
def test_rows_of_a_chunk(cols: int, name: str, expected: int) -> None:
    assert Cut("raw", 1000, cols, 2 * cols).rows_per_chunk(is_embedding(name)) == expected


@pytest.mark.parametrize(("rows", "expected"), [(0, 0), (1, 1), (128, 1), (129, 2), (256, 2)])
def test_number_of_chunks(rows: int, expected: int) -> None:
    assert Cut("raw", rows, 4, 8).n_chunks(128) == expected


def test_sizes() -> None:
    assert [padded(n, 64) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
    assert coarse_stream_bytes(300, 1024, 128) == padded(2 * coarse_bytes(128, 1024) + coarse_bytes(44, 1024), 4096)
    assert coarse_stream_bytes(256, 1024, 128) == padded(2 * coarse_bytes(128, 1024), 4096)
    assert Cut("raw", 100, 3, 6).most_fine_bytes(100) == 640


def test_names_of_streams() -> None:
    assert stream_names("a.weight", "planes") == ("a.weight.coarse", "a.weight.fine")
    assert stream_names("a.bias", "raw") == ("a.bias.raw",)
