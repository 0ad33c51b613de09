"""GGUF headers, read strictly.

A GGUF file is "GGUF", a version (2 or 3), the numbers of tensors and of metadata entries, the metadata, each tensor's
name, dimensions (the innermost first), type and offset, padding, and the tensors' bytes, aligned (specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). This reader takes no byte of a header on trust, reads none
of the data, and lets no number of the file decide how much memory it takes: what a number says is there has to be
there.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TypeAlias

import numpy as np

from penstock.errors import FormatError, UnsupportedError
from penstock.safetensors_header import DType
from penstock.strict_json import GET_AGAIN, LFS_POINTER, fail_lfs_pointer, open_regular, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Value: TypeAlias = "bool | int | float | str | list[bool] | list[int] | list[float] | list[str]"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEADER_BYTES = 100_000_000
"""As of a safetensors file; published ones take up to 16 MB."""
MOST_KEY_BYTES = 65_535
SHORT_ARRAY = 4096
"""Entries of an array that is always read: one for each layer, say."""
MOST_NAME_BYTES = 1024
MOST_DIMENSIONS = 4
USE_FULL = "Use a BF16, F16 or F32 GGUF of the model, or its original checkpoint."

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DTYPES = {0: DType.F32, 1: DType.F16, 30: DType.BF16}
_OTHER_TYPES = {
    **dict(zip((2, 3, 6, 7, 8, 9), ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1"), strict=True)),
    **dict(zip(range(10, 16), ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), strict=True)),
    **dict(zip(range(16, 21), ("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL"), strict=True)),
    **dict(zip(range(21, 30), ("IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M"), strict=True)),
    **dict(zip((34, 35, 39, 40, 41), ("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0"), strict=True)),
}
_UNQUANTIZED = ("I8", "I16", "I32", "I64", "F64")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies, by its name in the file; `shape` has the outermost dimension first, as everywhere here."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A file's header: its metadata, and its tensors in the order of their bytes."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether the file `path` is in this format, by its name or by how it begins. Raises FormatError."""
    if path.suffix == ".gguf":
        return True
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path, *, arrays: bool = False) -> GgufHeader:
    """Read and check the header of the GGUF file `path`; of the metadata, long arrays only where `arrays` asks for
    them: those of a tokenizer take tens of megabytes.

    Raises FormatError for anything but a sound file, UnsupportedError for one that is not in full precision.
    """
    with open_regular(path) as file:
        cursor = _Cursor(file, os.fstat(file.fileno()).st_size, path)
        n_tensors, n_entries = _read_counts(cursor)
        metadata = _read_metadata(cursor, n_entries, arrays)
        infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
        return _checked(cursor, metadata, infos)


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    """As the header has it; `dims` innermost first."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


class _Cursor:
    """A place in a file's header that moves on, but never past what there is."""

    def __init__(self, file: BinaryIO, file_size: int, path: Path) -> None:
        self.path, self.file_size = path, file_size
        self.position = 0
        self._file = file

    @property
    def left(self) -> int:
        """Bytes that a header may still have."""
        return min(self.file_size, MOST_HEADER_BYTES) - self.position

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            self._fail_beyond(nbytes, what)
        data = self._file.read(nbytes)
        self.position += len(data)
        if len(data) < nbytes:  # it became shorter since
            self._fail_beyond(nbytes, what)
        return data

    def number(self, format: str, what: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}"), what))[0]
        return value

    def count(self, format: str, what: str) -> int:
        return int(self.number(format, what))

    def string(self, what: str, most: int = MOST_HEADER_BYTES) -> str:
        nbytes = self.count("Q", f"the length of {what}")
        if nbytes > most:
            self.fail(f"{what} has a length of {nbytes:,} bytes, above the limit of {most:,}")
        try:
            return self.take(nbytes, what).decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8 (at its byte {error.start})")

    def fail(self, problem: str) -> NoReturn:
        raise FormatError(f"{self.path}: {problem}", GET_AGAIN)

    def _fail_beyond(self, nbytes: int, what: str) -> NoReturn:
        if self.position + nbytes > self.file_size:
            problem = f"{what} takes {nbytes:,} bytes, but the file ends after {self.file_size:,}"
            raise FormatError(f"{self.path} is truncated, or its header lies: {problem}", GET_AGAIN)
        self.fail(f"the header is larger than {MOST_HEADER_BYTES:,} bytes, the limit")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """Of tensors and of metadata entries."""
    magic = cursor.take(min(4, cursor.file_size), "the magic")
    if magic != MAGIC:
        rest = cursor.take(min(len(LFS_POINTER) - 4, max(0, cursor.left)), "the beginning")
        if magic + rest == LFS_POINTER:
            fail_lfs_pointer(cursor.path)
        raise FormatError(f"{cursor.path} is not a GGUF file: it starts with {shown(magic)}", GET_AGAIN)
    version = cursor.count("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = f"is big-endian (version {swapped})" if swapped in VERSIONS else f"has version {version}"
        problem = f"{cursor.path} {kind}; Penstock reads little-endian GGUF of versions 2 and 3"
        raise UnsupportedError(problem, "Convert the model again with a recent llama.cpp.")
    n_tensors, n_entries = cursor.count("Q", "the number of tensors"), cursor.count("Q", "the number of entries")
    for count, least, what in ((n_tensors, 24, "tensors"), (n_entries, 13, "metadata entries")):
        if count * least > cursor.left:
            cursor.fail(f"the header counts {count:,} {what}, more than the file has room for")
    return n_tensors, n_entries


def _read_metadata(cursor: _Cursor, n_entries: int, arrays: bool) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(n_entries):
        key = cursor.string("a key", MOST_KEY_BYTES)
        if key in seen:
            cursor.fail(f"the metadata has the key {shown(key)} twice")
        seen.add(key)
        what = f"the value of {shown(key)}"
        kind = cursor.count("I", f"the type of {shown(key)}")
        if kind == _ARRAY:
            values = _read_array(cursor, what, keep=arrays)
            if values is not None:
                metadata[key] = values
        else:
            metadata[key] = _read_scalar(cursor, kind, what)
    return metadata


def _read_scalar(cursor: _Cursor, kind: int, what: str) -> bool | int | float | str:
    if kind == _STRING:
        return cursor.string(what)
    if kind not in _FORMATS:
        cursor.fail(f"{what} has the unknown type {kind}")
    return cursor.number(_FORMATS[kind], what)


def _read_array(cursor: _Cursor, what: str, keep: bool) -> Value | None:
    """None where it is not to be kept."""
    kind, count = cursor.count("I", f"the type in {what}"), cursor.count("Q", f"the length of {what}")
    keep = keep or count <= SHORT_ARRAY
    if kind == _STRING:
        if count * 8 > cursor.left:
            cursor.fail(f"{what} counts {count:,} strings, more than the file has room for")
        strings = [cursor.string(what) if keep else _skip_string(cursor, what) for _ in range(count)]
        return strings if keep else None
    if kind not in _FORMATS:
        cursor.fail(f"{what} is an array of the type {kind}, which is not one of numbers or strings")
    dtype = np.dtype(f"<{_FORMATS[kind]}")
    data = cursor.take(count * dtype.itemsize, what)
    values: list[bool] | list[int] | list[float] = np.frombuffer(data, dtype).tolist() if keep else []
    return values if keep else None


def _skip_string(cursor: _Cursor, what: str) -> str:
    cursor.take(cursor.count("Q", what), what)
    return ""


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.string("the name of a tensor", MOST_NAME_BYTES)
    where = f"tensor {shown(name)}"
    n_dims = cursor.count("I", f"{where}: the number of dimensions")
    if not 0 < n_dims <= MOST_DIMENSIONS:
        cursor.fail(f"{where} has {n_dims} dimensions, not 1 to {MOST_DIMENSIONS}")
    dims = tuple(cursor.count("Q", f"{where}: its dimensions") for _ in range(n_dims))
    if 0 in dims or any(product >= 2**63 for product in accumulate(dims, mul)):
        cursor.fail(f"{where} has the dimensions {shown(list(dims))}: none, or more than 2**63 - 1 elements")
    return _TensorInfo(name, dims, cursor.count("I", f"{where}: its type"), cursor.count("Q", f"{where}: its offset"))


def _checked(cursor: _Cursor, metadata: Mapping[str, Value], infos: Sequence[_TensorInfo]) -> GgufHeader:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment % 8:
        cursor.fail(f"general.alignment is {shown(alignment)}, not a multiple of 8 up to 1,048,576")
    _check_full_precision(cursor, infos)
    data_begin = -(-cursor.position // alignment) * alignment
    tensors = [_placed(cursor, info, data_begin, alignment) for info in infos]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        name = next(name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1)
        cursor.fail(f"the tensor {shown(name)} is there twice")
    for before, after in pairwise(tensors):
        if after.begin < before.end:
            cursor.fail(f"tensor {shown(after.name)} overlaps {shown(before.name)}")
    return GgufHeader(cursor.path, MappingProxyType(dict(metadata)), MappingProxyType(by_name))


def _check_full_precision(cursor: _Cursor, infos: Sequence[_TensorInfo]) -> None:
    """Raise UnsupportedError, or FormatError for types that nobody knows, unless all tensors are in full precision."""
    others = Counter(info.type for info in infos if info.type not in _DTYPES)
    if not others:
        return
    kind, count = others.most_common(1)[0]
    name = next(info.name for info in infos if info.type == kind)
    if kind not in _OTHER_TYPES:
        cursor.fail(f"tensor {shown(name)} has the unknown type {kind}")
    problem = f"{cursor.path} holds {count} tensors as {_OTHER_TYPES[kind]} ({shown(name)} is one)"
    if _OTHER_TYPES[kind] in _UNQUANTIZED:
        raise UnsupportedError(f"{problem}, not BF16, F16 or F32", USE_FULL)
    raise UnsupportedError(f"{problem}: quantized, not the full-precision weights", USE_FULL)


def _placed(cursor: _Cursor, info: _TensorInfo, data_begin: int, alignment: int) -> GgufTensor:
    where, dtype = f"tensor {shown(info.name)}", _DTYPES[info.type]
    if info.offset % alignment:
        cursor.fail(f"{where} begins at offset {info.offset:,}, not a multiple of {alignment}")
    begin = data_begin + info.offset
    end = begin + math.prod(info.dims) * dtype.bits // 8
    if end > cursor.file_size:
        sizes = f"{end:,}, but the file has {cursor.file_size:,}"
        cursor.fail(f"{where} ends at byte {sizes}: truncated, or a wrong offset")
    return GgufTensor(info.name, dtype, info.dims[::-1], begin, end)
