"""Which files of a repository have the weights of some layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from penstock.architectures.names import canonical_name
from penstock.checkpoints.share_file import layers_in_words, read_share
from penstock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from penstock.packing.pack_folder import Original
    from penstock.safetensors_header import Header

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def of_layers(
    originals: Sequence[Original], headers: Mapping[str, Header], wanted: Collection[int], layers: Collection[int]
) -> tuple[list[Original], tuple[int, ...] | None]:
    """Of a model with such `layers`: the files that have something of those that are `wanted`, and which layers are
    there as a whole then, None where that is all of the model. `headers` by the names of files."""
    has = {one.name: _layers_in(one, headers[one.name]) for one in originals}
    chosen = [one for one in originals if has[one.name] & {*wanted}]
    if len(chosen) == len(originals):
        return chosen, None
    left_out = {layer for one in originals if one not in chosen for layer in has[one.name]}
    return chosen, tuple(layer for layer in layers if layer not in left_out)


def check_enough(folder: Path, layers: Collection[int] | None) -> None:
    """Raise UsageError where what was pulled lacks some of these layers; None stands for the whole model."""
    held = read_share(folder)
    if held is not None and (layers is None or not {*layers} <= {*held}):
        raise UsageError(
            f"{folder} is there already, and holds layers {layers_in_words(held)} alone.",
            "Delete it there, and pull again.",
        )


def _layers_in(original: Original, header: Header) -> set[int]:
    names = (canonical_name(name, original.prefix) for name in header.tensors)
    return {int(match[1]) for name in names if (match := _LAYER.search(name))}
