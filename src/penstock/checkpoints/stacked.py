"""Experts that a file holds as one tensor for a whole layer, as transformers 5 keeps them in memory.

`mlp.experts.gate_up_proj` is [experts, 2 inner, hidden], gate before up, `mlp.experts.down_proj` [experts, hidden,
inner]; each expert's matrices are rows of it, one after the other, so they are read where they are.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from penstock.architectures.names import expert, mlp_parts, stacked_part
from penstock.errors import FormatError
from penstock.packed_format.tensor import PackedTensor
from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from penstock.safetensors_header import TensorInfo


def unstacked(tensor: TensorInfo | PackedTensor) -> Iterable[TensorInfo | PackedTensor]:
    """The matrices of a tensor's experts, by their canonical names; or the tensor itself. Raises FormatError."""
    part = stacked_part(tensor.name, tensor.shape)
    return [tensor] if part is None or not prod(tensor.shape) else _iter_matrices(tensor, *part)


def _iter_matrices(tensor: TensorInfo | PackedTensor, layer: str, part: str) -> Iterator[TensorInfo | PackedTensor]:
    count, rows, _ = tensor.shape
    begin = 0
    for number in range(count):
        gate, up, down = (f"{layer}.{name}.weight" for name in mlp_parts(expert(number)))
        names = [gate, up] if part == "gate_up_proj" and rows % 2 == 0 else [down]
        for name in names:
            end = begin + rows // len(names)
            yield _rows_of(tensor, name, begin, end)
            begin = end


def _rows_of(tensor: TensorInfo | PackedTensor, name: str, begin: int, end: int) -> TensorInfo | PackedTensor:
    """Rows [begin, end) of all that a tensor of three dimensions has, as a matrix."""
    shape = (end - begin, tensor.shape[2])
    if isinstance(tensor, PackedTensor):
        if begin % tensor.rows_per_chunk or end % tensor.rows_per_chunk:
            problem = f"{tensor.path}: {shown(tensor.name)} is cut into chunks that have rows of two matrices"
            raise FormatError(problem, "Pack or pull the model again.")
        return replace(
            tensor.chunks(begin // tensor.rows_per_chunk, end // tensor.rows_per_chunk), name=name, shape=shape
        )
    row_bytes = tensor.nbytes // (tensor.shape[0] * tensor.shape[1])
    first = tensor.begin + begin * row_bytes
    return replace(tensor, name=name, shape=shape, begin=first, end=first + (end - begin) * row_bytes)
