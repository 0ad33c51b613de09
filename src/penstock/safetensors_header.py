"""Safetensors headers, read strictly.

A safetensors file is an unsigned little-endian 64-bit length N, a JSON object of N bytes, and the tensors' bytes
(specification: https://github.com/huggingface/safetensors, section "Format"). The object gives each tensor's dtype,
shape and `data_offsets` [begin, end) within the data, and may hold strings under `__metadata__`. The tensors cover
the data without holes or overlaps. This reader takes no byte of a header on trust and reads none of the data.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from itertools import accumulate
from operator import mul
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar, NamedTuple, NoReturn

from penstock.errors import FormatError
from penstock.strict_json import (
    GET_AGAIN,
    LFS_POINTER,
    MAX_JSON_BYTES,
    fail_lfs_pointer,
    open_regular,
    parse_json_object,
    shown,
)

_LENGTH_BYTES = 8


class DType(Enum):
    """The safetensors dtypes, by the names that headers give them."""

    BOOL = "BOOL"
    F4 = "F4"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    U8 = "U8"
    I8 = "I8"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    C64 = "C64"
    F64 = "F64"
    I64 = "I64"
    U64 = "U64"

    def __init__(self, name: str) -> None:
        size = re.search(r"\d+", name)
        self.bits = int(size[0]) if size else 8
        """Size of one element. Every name but BOOL's says it in its first number."""


DTYPES = DType.__members__


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes [begin, end) of the file, counted from the file's start; row-major, little-endian.

    `name` is the name that the file gives it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int
    # As a packed tensor answers (packed_format/tensor.py): this one is stored as it is.
    in_tiers: ClassVar = False
    coarse_bytes: ClassVar = 0
    draft_bytes: ClassVar = 0

    @property
    def original_nbytes(self) -> int:
        return self.nbytes

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: its tensors in the order of their bytes, and its metadata.

    The header itself is bytes [8, data_begin) of the file, padding included; the data is [data_begin, file_size).
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_begin: int
    file_size: int


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file `path`.

    Raises FormatError for anything but a sound file of which every byte is accounted for.
    """
    with open_regular(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        raw = _read_raw_header(file, file_size, path)
    return _parse(raw, file_size, path)


def parse_header(content: bytes, path: Path, file_size: int | None = None) -> Header:
    """Parse and check the header in `content`, the first bytes of the safetensors file `path`, which need not be here.

    `file_size`: of the whole file, bytes; None for what its tensors add up to. Raises FormatError as `read_header`.
    """
    whole = len(content) if file_size is None else file_size
    return _parse(_read_raw_header(BytesIO(content), whole, path), file_size, path)


def encode_header(tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> bytes:
    """The length, JSON and padding that a file begins with, as the safetensors library writes them; `tensors`: dtype,
    shape and bytes of each, by name, in the order of their bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, nbytes) in tensors.items():
        begin, end = end, end + nbytes
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse(raw: bytes, file_size: int | None, path: Path) -> Header:
    data_begin = _LENGTH_BYTES + len(raw)
    entries = parse_json_object(raw, f"{path}: the header")
    metadata = _parse_metadata(entries.pop("__metadata__", {}), path)
    tensors = [_parse_tensor(name, entry, data_begin, path) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    if file_size is None:
        file_size = max((tensor.end for tensor in tensors), default=data_begin)
    _check_coverage(tensors, data_begin, file_size, path)
    by_name = MappingProxyType({tensor.name: tensor for tensor in tensors})
    return Header(path, by_name, MappingProxyType(metadata), data_begin, file_size)


def _read_raw_header(file: BinaryIO, file_size: int, path: Path) -> bytes:
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        _fail(f"{path} is not a safetensors file: it has {file_size} bytes, fewer than the 8 of the header's length")
    length = int.from_bytes(prefix, "little")
    if length > MAX_JSON_BYTES:
        if (prefix + file.read(len(LFS_POINTER))).startswith(LFS_POINTER):
            fail_lfs_pointer(path)
        _fail(f"{path}: the header's length is {length:,} bytes, above the limit of {MAX_JSON_BYTES:,}")
    if length == 0:
        _fail(f"{path}: the header's length is 0")
    raw = file.read(length)
    if len(raw) < length:
        _fail(f"{path} is truncated: the header is {length:,} bytes long, but the file ends after {file_size:,}")
    if not raw.startswith(b"{"):
        _fail(f"{path}: the header starts with {shown(raw[:1])}, not with '{{'")
    return raw


def _parse_metadata(metadata: object, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict):
        _fail(f"{path}: __metadata__ is {shown(metadata)}, not an object of strings")
    for key, value in metadata.items():
        if not isinstance(value, str):
            _fail(f"{path}: __metadata__ gives {shown(key)} the value {shown(value)}, not a string")
    return metadata


class _Where(NamedTuple):
    """A tensor, as messages name it: there are many, and hardly ever a message."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}: tensor {shown(self.name)}"


def _parse_tensor(name: str, entry: object, data_begin: int, path: Path) -> TensorInfo:
    where = _Where(path, name)
    if (found := _sound_tensor(entry)) is not None:
        dtype, shape, (begin, end) = found
        return TensorInfo(name, dtype, shape, path, data_begin + begin, data_begin + end)
    if not isinstance(entry, dict):
        _fail(f"{where} is {shown(entry)}, not an object")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            _fail(f"{where} has no {key}")
    if len(entry) > 3:
        extra = next(key for key in entry if key not in ("dtype", "shape", "data_offsets"))
        _fail(f"{where} has the key {shown(extra)}, which safetensors does not define")
    dtype = _parse_dtype(entry["dtype"], where)
    shape = _parse_shape(entry["shape"], where)
    begin, end = _parse_offsets(entry["data_offsets"], where)
    n_bits = math.prod(shape) * dtype.bits
    if n_bits % 8:
        _fail(f"{where} has {n_bits} bits ({dtype.value}, shape {shown(list(shape))}), not whole bytes")
    if end - begin != n_bits // 8:
        size = f"{dtype.value} of shape {shown(list(shape))} takes {n_bits // 8:,}"
        _fail(f"{where} has {end - begin:,} bytes by its data_offsets, but {size}")
    return TensorInfo(name, dtype, shape, path, data_begin + begin, data_begin + end)


def _sound_tensor(entry: Any) -> tuple[DType, tuple[int, ...], tuple[int, int]] | None:
    """Dtype, shape and offsets, if they are those of an ordinary tensor: nearly all are, and there may be 40,000."""
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        usual = len(entry) == 3 and {*map(type, (*shape, begin, end))} == {int} and min(shape, default=1) > 0 <= begin
        size = math.prod(shape) * dtype.bits
    except (KeyError, TypeError, ValueError):
        return None
    return (dtype, shape, (begin, end)) if usual and size == 8 * (end - begin) and end < 2**63 else None


def _parse_dtype(value: object, where: _Where) -> DType:
    dtype = DType.__members__.get(value) if isinstance(value, str) else None
    if dtype is None:
        _fail(f"{where} has the unknown dtype {shown(value)}")
    return dtype


def _parse_shape(value: object, where: _Where) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        _fail(f"{where} has the shape {shown(value)}, not a list of non-negative integers")
    # Empty dimensions count as 1, so that no stride overflows; step by step, so that no product grows huge.
    if any(product >= 2**63 for product in accumulate((size or 1 for size in value), mul)):
        _fail(f"{where} has the shape {shown(value)}, more than 2**63 - 1 elements")
    return tuple(value)


def _parse_offsets(value: object, where: _Where) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(offset) is int for offset in value):
        _fail(f"{where} has the data_offsets {shown(value)}, not two integers")
    begin, end = value
    if not all(0 <= offset < 2**63 for offset in value):
        _fail(f"{where} has the data_offsets {shown(value)}, one of which is negative or beyond any file")
    if begin > end:
        _fail(f"{where} has the data_offsets {shown(value)}, which end before they begin")
    return begin, end


def _check_coverage(tensors: Sequence[TensorInfo], data_begin: int, file_size: int, path: Path) -> None:
    """Check that `tensors`, sorted by offset, cover bytes [data_begin, file_size) of the file, each byte once."""
    covered, before = data_begin, "the header"
    for tensor in tensors:
        where = f"{path}: tensor {shown(tensor.name)}"
        if tensor.end > file_size:
            _fail(f"{where} ends at byte {tensor.end:,}, but the file has {file_size:,}: truncated, or a wrong offset")
        if tensor.begin < covered:
            _fail(f"{where} overlaps {before} by {covered - tensor.begin:,} bytes")
        if tensor.begin > covered:
            _fail(f"{where} begins {tensor.begin - covered:,} bytes after the end of {before}: a hole in the data")
        covered, before = tensor.end, shown(tensor.name)
    if covered < file_size:
        _fail(f"{path} has {file_size - covered:,} bytes that belong to no tensor after the end of {before}")


def _fail(problem: str) -> NoReturn:
    raise FormatError(problem, GET_AGAIN)
