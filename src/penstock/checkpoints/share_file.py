"""What a directory says that has some layers of a model alone, for a machine that has a part in a pass: share.json.

{"layers": [8, 9, ...]} names those whose tensors are all there. The index lists the files of the whole model.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

from penstock.errors import FormatError
from penstock.strict_json import read_json_object, shown

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

SHARE = "share.json"


def read_share(folder: Path) -> tuple[int, ...] | None:
    """The layers that are in a directory; None where all are. Raises FormatError, OSError."""
    path = folder / SHARE
    if not path.exists():
        return None
    layers = read_json_object(path).get("layers")
    if not isinstance(layers, list) or not layers or not _ascend(layers):
        raise FormatError(
            f"{path}: layers is {shown(layers)}, not ascending numbers of layers", "Pull the model again."
        )
    return tuple(layers)


def _ascend(layers: list[object]) -> bool:
    numbers = [layer for layer in layers if type(layer) is int]
    return len(numbers) == len(layers) and numbers[0] >= 0 and all(a < b for a, b in pairwise(numbers))


def share_bytes(layers: Collection[int]) -> bytes:
    """What the file of such layers says."""
    return json.dumps({"layers": sorted(layers)}).encode()


def layers_in_words(layers: Collection[int]) -> str:
    """For people: "8-15", "0, 2, 4-5"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
