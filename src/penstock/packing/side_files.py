"""What stands beside the weights: configs, tokenizer, licence. Copied as it is, both ways, but for the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.checkpoints.layout import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.packed_format.reader import PackedFile

CONFIG = "config.json"
ORIGINAL_INDEX = f"original.{INDEX}"
"""The original index beside the packed weights, whose own one names the packed streams."""

MOST_BYTES = 100_000_000
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".tflite")


def is_side_file(name: str, nbytes: int) -> bool:
    """Whether a file of a checkpoint, by its path relative to it, goes along with the weights."""
    return "/" not in name and not name.endswith(_WEIGHTS) and nbytes <= MOST_BYTES


def side_files(folder: Path) -> list[Path]:
    """The files in `folder` that go along with the weights, config.json last."""
    files = [file for file in folder.iterdir() if file.is_file() and is_side_file(file.name, file.stat().st_size)]
    return sorted(files, key=lambda file: (file.name == CONFIG, file.name))


def packed_index(files: Iterable[tuple[str, PackedFile]]) -> bytes:
    """The model.safetensors.index.json of packed files by their names: where each stream is."""
    places: dict[str, str] = {}
    total = 0
    for name, file in files:
        places |= {stream: name for tensor in file.tensors.values() for stream in tensor.streams}
        total += sum(tensor.nbytes for tensor in file.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(index, indent=2).encode()
