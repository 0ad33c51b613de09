"""Tensors that a GGUF file stores otherwise than the checkpoint that it was made of, and how they come back.

llama.cpp turns pairs of neighbours where `transformers` turns the two halves of a head, so for the families that it
runs in that way the rows of queries and keys lie interleaved within each head: row 2i of a head is row i of its first
half, row 2i + 1 is row i of its second. And the weights of Gemma's norms are stored with the 1 that is added to them.
Source: conversion/llama.py (`permute`) and conversion/gemma.py (`norm_shift`) of llama.cpp.

Nothing is written anew: what is read is put in order, or, for a product, what comes out of it. A dot product does not
depend on its neighbours, so its bits are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.errors import FormatError
from penstock.safetensors_header import DType, TensorInfo
from penstock.strict_json import shown

if TYPE_CHECKING:
    from typing import TypeVar

    import numpy.typing as npt

    from penstock.compute.kernels import U8

    Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class RestoredTensor(TensorInfo):
    """A tensor whose place is as TensorInfo says, and whose bytes there are not yet those of the checkpoint."""

    head_rows: int = 0
    """Rows of a head, where they lie interleaved; else 0."""
    shift: float = 0.0
    """What the weights have been raised by."""

    def restored(self, data: U8) -> U8:
        """The checkpoint's bytes of whole heads, or of the whole vector where it was raised. Raises FormatError."""
        if self.head_rows:
            rows = len(data) * self.shape[0] // self.nbytes
            return halves_of_pairs(data.reshape(rows, -1), self.head_rows).reshape(-1)
        return self._lowered(data.view(np.float32)).view(np.uint8)

    def _lowered(self, raised: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Weights that give back the stored ones, to the bit, once they are raised again."""
        shift = np.float32(self.shift)
        lowered: npt.NDArray[np.float32] = raised - shift
        if not np.array_equal(lowered + shift, raised, equal_nan=True):
            problem = f"{self.path}: tensor {shown(self.name)} holds values that are not {self.shift:g} and a weight"
            raise FormatError(problem, "Convert the model again with a recent llama.cpp.")
        return lowered


def restored_tensor(tensor: TensorInfo, head_rows: int, shift: float) -> TensorInfo:
    """The tensor as the checkpoint has it; raised ones have to be float32 vectors. Raises FormatError."""
    if not head_rows and not shift:
        return tensor
    if (head_rows and (tensor.shape[0] % head_rows or head_rows % 2)) or (shift and tensor.dtype is not DType.F32):
        problem = f"{tensor.path}: tensor {shown(tensor.name)} is {tensor.dtype.value} of shape {list(tensor.shape)}"
        raise FormatError(f"{problem}, which the metadata does not allow", "Convert the model again.")
    return RestoredTensor(
        tensor.name, tensor.dtype, tensor.shape, tensor.path, tensor.begin, tensor.end, head_rows, shift
    )


def halves_of_pairs(rows: npt.NDArray[Scalar], head_rows: int) -> npt.NDArray[Scalar]:
    """Rows [n, ...] that lie in pairs, each head's first halves before its second ones: a copy."""
    heads = rows.reshape(-1, head_rows // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def pairs_of_halves(rows: npt.NDArray[Scalar], head_rows: int) -> npt.NDArray[Scalar]:
    """What `halves_of_pairs` undoes."""
    heads = rows.reshape(-1, 2, head_rows // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def read_original(tensor: TensorInfo, begin: int, nbytes: int, files: Files) -> U8:
    """Bytes [begin, begin + nbytes) of a tensor as the checkpoint has it. Raises ReadError, FormatError."""
    if not isinstance(tensor, RestoredTensor):
        return _read(tensor, begin, nbytes, files)
    together = tensor.nbytes  # what has to be read together: a vector, or the rows of a head
    if tensor.head_rows:
        together = tensor.head_rows * (tensor.nbytes // tensor.shape[0])
    first, last = begin // together * together, -(-(begin + nbytes) // together) * together
    data = tensor.restored(_read(tensor, first, last - first, files))
    return data[begin - first : begin - first + nbytes]


def _read(tensor: TensorInfo, begin: int, nbytes: int, files: Files) -> U8:
    return files.read(Extent(tensor.path, tensor.begin + begin, nbytes), aligned_buffer(nbytes))
