from __future__ import annotations

from pathlib import Path

import pytest

from penstock.packing.side_files import MOST_BYTES, is_side_file, side_files


@pytest.mark.parametrize(
    ("name", "nbytes", "expected"),
    [
        ("config.json", 100, True),
        ("tokenizer.model", MOST_BYTES, True),
        ("tokenizer.json", MOST_BYTES + 1, False),
        (".gitattributes", 10, True),
        ("LICENSE", 0, True),
        ("model.safetensors", 10, False),
        ("pytorch_model-00001-of-00002.bin", 10, False),
        ("consolidated.00.pth", 10, False),
        ("model-q4.gguf", 10, False),
        ("original/params.json", 10, False),
        ("onnx/model.onnx", 10, False),
        ("rust_model.ot", 10, False),
    ],
)
def test_what_goes_along(name: str, nbytes: int, expected: bool) -> None:
    assert is_side_file(name, nbytes) == expected


def test_config_json_comes_last(tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt", "a.json", "model.safetensors"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    assert [path.name for path in side_files(tmp_path)] == ["a.json", "vocab.txt", "config.json"]
