"""Packed files, read strictly: what docs/format.md says, and nothing else.

Opening one reads its safetensors header, the original header, the table of chunks and the index, all of them under the
seal; chunks are checked as they are read, by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn

import numpy as np
import xxhash

from penstock.errors import ChecksumError, FormatError
from penstock.packed_format.layout import (
    CHUNK_ALIGNMENT,
    STREAM_ALIGNMENT,
    Cut,
    coarse_stream_bytes,
    cut,
    padded,
    stream_names,
)
from penstock.packed_format.tensor import PACK_AGAIN, RECORD, ChunkTable, PackedTensor, place
from penstock.safetensors_header import DType, Header, TensorInfo, parse_header, read_header
from penstock.strict_json import GET_AGAIN, MAX_JSON_BYTES, Fields, open_regular, parse_json_object, shown

if TYPE_CHECKING:
    import numpy.typing as npt

    U64 = npt.NDArray[np.uint64]

FORMAT = "penstock"
HEADER, CHUNKS, INDEX, SEAL = SERVICE = ("penstock.header", "penstock.chunks", "penstock.index", "penstock.seal")
SEAL_BYTES = 64


def is_packed_file(header: Header) -> bool:
    """Whether a safetensors file is a packed one, be it damaged."""
    return header.metadata.get("format") == FORMAT or SEAL in header.tensors


@dataclass(frozen=True, slots=True, eq=False)
class PackedFile:
    """A packed file: its tensors by their names in the original one, in the order of this file."""

    path: Path
    original_header: bytes
    """The first bytes of the original file: length, header, padding."""
    original_size: int
    file_size: int
    tensors: Mapping[str, PackedTensor]


def read_packed(path: Path, check_seal: bool = True, header: Header | None = None) -> PackedFile:
    """Read and check all of a packed file but its chunks.

    `check_seal=False` is for what wants to know of all damage; `header`: where it was read already. Raises
    ChecksumError where the seal is broken, FormatError where a file of a sound seal breaks the format.
    """
    header = header or read_header(path)
    with open_regular(path) as file:
        parts = _read_service(file, header)
        if check_seal:
            _check_seal(file, header, parts)
    read = _reader_of(header)
    index = Fields(parse_json_object(parts[INDEX], f"{path}: {INDEX}"), f"{path}: {INDEX}")
    return read(header, parts, index)


def _read(version: int, header: Header, parts: Mapping[str, bytes], index: Fields) -> PackedFile:
    """A file of version 1 or 2, which differ in how they cut tensors of three dimensions."""
    path = header.path
    own = index.get("version")
    if type(own) is not int or str(own) not in READERS:
        raise _unknown_version(own, path)
    if own != version:
        _fail(f"{path}: {INDEX} is of version {own}, but the metadata say {version}")
    original = _original_header(index, parts[HEADER], path)
    tensors = _read_tensors(version, index, parts[CHUNKS], header, original)
    by_name = MappingProxyType({tensor.name: tensor for tensor in tensors})
    content = parts[HEADER][: original.data_begin]
    return PackedFile(path, content, original.file_size, header.file_size, by_name)


def _read_service(file: BinaryIO, header: Header) -> dict[str, bytes]:
    """The bytes of the last four tensors of a file."""
    if tuple(header.tensors)[-len(SERVICE) :] != SERVICE:
        _reader_of(header)
        _fail(f"{header.path} is a packed file, but its last tensors are not {', '.join(SERVICE)}")
    parts = {}
    for name in SERVICE:
        tensor = header.tensors[name]
        _check_stream(tensor, tensor.nbytes, header.path)
        if tensor.nbytes > MAX_JSON_BYTES:
            _fail(f"{header.path}: {name} has {tensor.nbytes:,} bytes, above the limit of {MAX_JSON_BYTES:,}")
        file.seek(tensor.begin)
        parts[name] = file.read(tensor.nbytes)
        if len(parts[name]) < tensor.nbytes:
            _fail(f"{header.path} is truncated in {name}")
    if len(parts[SEAL]) != SEAL_BYTES:
        _fail(f"{header.path}: {SEAL} has {len(parts[SEAL]):,} bytes, not {SEAL_BYTES}")
    return parts


def _check_seal(file: BinaryIO, header: Header, parts: Mapping[str, bytes]) -> None:
    file.seek(0)
    if parts[SEAL] != seal(file.read(header.data_begin), *(parts[name] for name in SERVICE[:-1])):
        places = (
            f"bytes 0 to {header.data_begin:,} (header), or {header.tensors[HEADER].begin:,} to {header.file_size:,}"
        )
        problem = f"{header.path}: {places} ({', '.join(SERVICE)}): the checksum does not match: the file is damaged"
        raise ChecksumError(problem, PACK_AGAIN)


def seal(*parts: bytes) -> bytes:
    """The content of penstock.seal: the hash of all that comes before the data and after the streams, and zeros."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest().to_bytes(8, "little") + bytes(SEAL_BYTES - 8)


def _reader_of(header: Header) -> Reader:
    """By the version that the file's metadata name. Raises FormatError."""
    version = header.metadata.get("version")
    reader = READERS.get(version or "")
    if reader is None:
        raise _unknown_version(version, header.path)
    return reader


def _unknown_version(version: object, path: Path) -> FormatError:
    problem = f"{path} has version {shown(version)} of the packed format, made by a newer Penstock"
    return FormatError(f"{problem}: this one reads version {', '.join(READERS)}", "Update Penstock.")


def _original_header(index: Fields, content: bytes, path: Path) -> Header:
    """The original file's header, which penstock.header holds, by the rules for any safetensors file."""
    nbytes = index.size("header_bytes")
    if padded(nbytes, CHUNK_ALIGNMENT) != len(content) or any(content[nbytes:]):
        _fail(f"{path}: {HEADER} does not hold header_bytes = {nbytes:,} bytes and zeros up to a multiple of 64")
    original = parse_header(content[:nbytes], Path(f"{path} ({HEADER})"))
    if original.data_begin != nbytes:
        _fail(f"{path}: header_bytes is {nbytes:,}, but the original header takes {original.data_begin:,}")
    return original


def _read_tensors(version: int, index: Fields, chunks: bytes, header: Header, original: Header) -> list[PackedTensor]:
    entries = index.get("tensors")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        index.fail("tensors", "a list of objects")
    if extra := index.unknown(frozenset()):
        _fail(f"{header.path}: {INDEX} has the key {shown(extra[0])}, which version {version} does not define")
    reader = _Streams(version, header, np.frombuffer(chunks, RECORD, len(chunks) // RECORD.itemsize))
    tensors = [reader.next(entry, index.source, original) for entry in entries]
    reader.check_end(chunks, header.tensors[HEADER].begin)
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors) or names != original.tensors.keys():
        _fail(f"{header.path}: {INDEX} does not name each tensor of the original file once")
    return tensors


class _Streams:
    """Goes through the streams of a file in order, and makes sure that they leave nothing out."""

    def __init__(self, version: int, header: Header, records: npt.NDArray[np.void]) -> None:
        self._version, self._header = version, header
        self._table = ChunkTable(records)
        self._position = header.data_begin
        self._used = 0
        self._n_streams = 0

    def next(self, mapping: Mapping[str, object], source: str, original: Header) -> PackedTensor:
        """What an entry of the index is of."""
        path, name = self._header.path, mapping.get("name")
        tensor = original.tensors.get(name) if isinstance(name, str) else None
        if tensor is None:
            _fail(f"{path}: {INDEX} names {shown(name)}, which the original header does not have")
        how = cut(tensor, self._version)
        rows, chunks = mapping.get("rows_per_chunk"), mapping.get("chunks")
        # There may be 20,000, so that what is right is not looked at key by key.
        if (
            type(rows) is int
            and type(chunks) is int
            and how.allows(rows)
            and mapping
            == {
                "name": name,
                "codec": how.codec,
                "rows_per_chunk": rows,
                "chunks": how.n_chunks(rows),
            }
        ):
            return self._tensor(tensor, how, rows, chunks)
        return self._tensor(tensor, how, *self._chunks(Fields(mapping, source), how))

    def _chunks(self, entry: Fields, how: Cut) -> tuple[int, int]:
        """Rows in a chunk, and how many chunks there are, of a tensor that is cut so. Raises FormatError."""
        path, name = self._header.path, entry.get("name")
        if entry.get("codec") != how.codec:
            entry.fail("codec", f"{shown(how.codec)}, as the format has {shown(name)}")
        rows_per_chunk, n_chunks = entry.size("rows_per_chunk"), entry.optional_count("chunks") or 0
        if not how.allows(rows_per_chunk):
            parts = f", and a part of {how.whole:,}" if how.whole else ""
            entry.fail("rows_per_chunk", f"{how.rows_per_chunk()} at most{parts}, as the format has {shown(name)}")
        if n_chunks != how.n_chunks(rows_per_chunk):
            entry.fail("chunks", f"{how.n_chunks(rows_per_chunk)}, as the {how.rows:,} rows of {shown(name)} have")
        if extra := entry.unknown(frozenset()):
            _fail(f"{path}: {INDEX} gives {shown(name)} the unknown key {shown(extra[0])}")
        return rows_per_chunk, n_chunks

    def _tensor(self, tensor: TensorInfo, how: Cut, rows_per_chunk: int, n_chunks: int) -> PackedTensor:
        chunks = slice(self._used, self._used + n_chunks)
        if len(self._table) < chunks.stop:
            _fail(f"{self._header.path}: {CHUNKS} is shorter than {INDEX} says")
        self._used = chunks.stop
        offsets = self._table.offsets
        *coarse, fine = stream_names(tensor.name, how.codec)
        coarse_begin = 0
        for stream in coarse:
            coarse_begin = self._stream(stream, coarse_stream_bytes(how.rows, how.cols, rows_per_chunk))
        fine_begin = self._stream(fine, int(offsets[chunks.stop] - offsets[chunks.start]))
        self._check_sizes(tensor.name, how, rows_per_chunk, chunks)
        return place(tensor, how, self._header.path, rows_per_chunk, coarse_begin, fine_begin, self._table, chunks)

    def _stream(self, name: str, nbytes: int) -> int:
        """Where the next stream begins, which has to have this name and size."""
        stream = self._header.tensors.get(name)
        if stream is None:
            _fail(f"{self._header.path} lacks {shown(name)}, which {INDEX} calls for")
        _check_stream(stream, nbytes, self._header.path)
        if stream.begin != self._position:
            _fail(f"{self._header.path}: {shown(name)} begins at byte {stream.begin:,}, not at {self._position:,}")
        self._position = stream.end
        self._n_streams += 1
        return stream.begin

    def _check_sizes(self, name: str, how: Cut, rows_per_chunk: int, chunks: slice) -> None:
        """Check the sizes of the fine or raw stream's chunks."""
        where = _Chunks(self._header.path, name)
        sizes = np.diff(self._table.offsets[chunks.start : chunks.stop + 1])
        if not how.in_tiers:
            rows = np.full(len(sizes), rows_per_chunk)
            rows[-1:] = how.rows - rows_per_chunk * (len(sizes) - 1)
            expected = -(-rows * how.row_bytes // CHUNK_ALIGNMENT) * CHUNK_ALIGNMENT
            if not np.array_equal(sizes, expected):
                _fail(f"{where} a size that is not that of its rows")
            if self._table.coarse_hashes[chunks].any():
                _fail(f"{where} a coarse hash, but it has no coarse stream")
            return
        most = how.most_fine_bytes(rows_per_chunk)
        whole = [int(size) for size in sizes]
        if (
            min(whole) <= 0
            or max(whole) > most
            or any(size % CHUNK_ALIGNMENT for size in whole)
            or sum(whole) % STREAM_ALIGNMENT
        ):
            _fail(f"{where} a size that is none of the format")

    def check_end(self, chunks: bytes, end: int) -> None:
        """Check that nothing is left over once all tensors were told."""
        path = self._header.path
        size = self._used * RECORD.itemsize
        if padded(size, CHUNK_ALIGNMENT) != len(chunks) or any(chunks[size:]):
            _fail(f"{path}: {CHUNKS} has {len(chunks):,} bytes, not {size:,} and zeros up to a multiple of 64")
        if self._n_streams + len(SERVICE) != len(self._header.tensors) or self._position != end:
            _fail(f"{path} holds tensors that {INDEX} does not call for")


class _Chunks(NamedTuple):
    """The chunks of a tensor, as messages begin with them."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}: {CHUNKS} gives a chunk of {shown(self.name)}"


def _check_stream(stream: TensorInfo, nbytes: int, path: Path) -> None:
    """Check that a stream is bytes in one dimension, and so many."""
    if stream.dtype is not DType.U8 or len(stream.shape) != 1:
        _fail(f"{path}: {shown(stream.name)} is {stream.dtype.value} {list(stream.shape)}, not U8 of one dimension")
    if stream.nbytes != nbytes:
        _fail(f"{path}: {shown(stream.name)} has {stream.nbytes:,} bytes, not {nbytes:,} as its rows and chunks take")


def _fail(problem: str) -> NoReturn:
    raise FormatError(problem, GET_AGAIN)


Reader = Callable[[Header, Mapping[str, bytes], Fields], PackedFile]
"""(header, the bytes of SERVICE by name, the index): all of a file but its chunks."""

READERS: Mapping[str, Reader] = {"1": partial(_read, 1), "2": partial(_read, 2)}
"""By version, as the metadata have it."""
