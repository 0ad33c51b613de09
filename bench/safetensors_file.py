"""Writes safetensors files for the benchmarks, tensor by tensor (specification: the safetensors repository)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ITEM_BYTES = {"BF16": 2, "F32": 4}


def write(file: Path, dtype: str, shapes: Mapping[str, tuple[int, ...]], arrays: Iterable[npt.NDArray[Any]]) -> None:
    """A file of tensors of one dtype, "BF16" or "F32": `arrays` gives their words in the order of `shapes`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            out.write(np.ascontiguousarray(array).data)
