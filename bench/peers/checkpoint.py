"""The tensors of a checkpoint in the Hugging Face layout as raw bytes, mapped, for the converters of the peers.

Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WORDS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `dtype` is safetensors' name, `offset` counts from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def words(self) -> npt.NDArray[Any]:
        """The bit patterns, unsigned integers of the type's width, [shape]; read as they are used."""
        return np.memmap(self.file, WORDS[self.dtype], "r", self.offset, self.shape)

    def floats(self) -> npt.NDArray[np.float32]:
        """The values in float32, exactly, [shape]."""
        words = self.words()
        if self.dtype == "BF16":
            return (words.astype(np.uint32) << 16).view(np.float32)
        return words.view(np.float16 if self.dtype == "F16" else np.float32).astype(np.float32)


def read_tensors(model: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                offset = 8 + size + entry["data_offsets"][0]
                tensors[name] = Tensor(file, entry["dtype"], tuple(entry["shape"]), offset)
    return tensors
