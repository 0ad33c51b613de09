"""Experts that a file holds as one tensor for a whole layer, as transformers 5 keeps them in memory.

`mlp.experts.gate_up_proj` is [experts, 2 inner, hidden], gate before up, `mlp.experts.down_proj` [experts, hidden,
inner]; each expert's matrices are rows of it, one after the other, so they are read where they are.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.architectures.names import expert, mlp_parts
from penstock.errors import UnsupportedError
from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.safetensors_header import Header, TensorInfo

_STACKED = re.compile(r"(.+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def is_stacked(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has the matrices of all experts of a layer."""
    return len(shape) == 3 and _STACKED.fullmatch(name) is not None


def unstacked(tensor: TensorInfo) -> Iterator[TensorInfo]:
    """The matrices of its experts, by their canonical names."""
    match = _STACKED.fullmatch(tensor.name)
    if match is None:
        raise ValueError(f"{tensor.name} has no experts")
    layer, (count, rows, cols) = match[1], tensor.shape
    stride = tensor.nbytes // max(1, count)
    for number in range(count):
        gate, up, down = (f"{layer}.{part}.weight" for part in mlp_parts(expert(number)))
        parts = [gate, up] if match[2] == "gate_up_proj" and rows % 2 == 0 else [down]
        begin, size = tensor.begin + number * stride, stride // len(parts)
        for name in parts:
            yield replace(tensor, name=name, shape=(rows // len(parts), cols), begin=begin, end=begin + size)
            begin += size


def check_none_stacked(header: Header) -> None:
    """Raise UnsupportedError where a file that is to be packed holds experts so, which the packed format cannot."""
    for name, tensor in header.tensors.items():
        if is_stacked(name, tensor.shape):
            raise UnsupportedError(
                f"{header.path}: {shown(name)} holds all experts of a layer, which runs as it is, but cannot be packed",
                "Use the files that the Hub has, or save the model again: with transformers, "
                "save_pretrained(NEW_DIRECTORY, save_original_format=True) writes each expert by itself.",
            )
