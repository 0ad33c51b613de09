"""Small checkpoints that are worth packing, and packed files of any content."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from helpers.checkpoints import tiny_config
from penstock.architectures.registry import parse_config
from penstock.compute.kernels import U8
from penstock.disk.files import Files
from penstock.packed_format.chunks import original_bytes
from penstock.packed_format.reader import CHUNKS, HEADER, INDEX, SEAL, SERVICE, PackedFile, read_packed, seal
from penstock.packed_format.runs import PassOrder
from penstock.packed_format.tensor import RECORD
from penstock.packing.pack import pass_ranks
from penstock.packing.pack_file import pack_file
from penstock.safetensors_header import DType, read_header

Entry = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor."""


def packable_config(**changes: Any) -> dict[str, Any]:
    """A Llama most of whose matrices are large enough to be packed: about 2 million weights."""
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "num_key_value_heads": 4}
    return tiny_config(**sizes | changes)


def file_content(
    entries: Sequence[Entry], seed: int = 0, padding: int = 0, metadata: dict[str, str] | None = None
) -> bytes:
    """A safetensors file of random weights: bell-shaped BF16, all other dtypes noise."""
    rng = np.random.default_rng(seed)
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data: list[bytes] = []
    end = 0
    for name, dtype, shape in entries:
        nbytes = prod(shape) * DType(dtype).bits // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
        data.append(_weights(rng, prod(shape)) if dtype == "BF16" else rng.bytes(nbytes))
    text = json.dumps(header, ensure_ascii=False).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def _weights(rng: np.random.Generator, count: int) -> bytes:
    values = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


class BytesSource:
    """A file in memory."""

    def __init__(self, content: bytes, name: str = "model.safetensors") -> None:
        self.name = name
        self.size = len(content)
        self.content = content
        self.asked: list[tuple[int, int]] = []

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        for begin, nbytes in ranges:
            self.asked.append((begin, nbytes))
            yield np.frombuffer(self.content[begin : begin + nbytes], np.uint8)

    def header(self) -> bytes:
        return self.content[: 8 + int.from_bytes(self.content[:8], "little")]


def pack_bytes(
    content: bytes, path: Path, *, threads: int = 2, config: dict[str, Any] | None = None, prefix: str = ""
) -> PackedFile:
    """Pack a safetensors file into the file `path`."""
    source = BytesSource(content)
    ranks = {} if config is None else pass_ranks(parse_config(config, "config"))
    partial = path.with_name(f"{path.name}.partial")
    with ThreadPoolExecutor(threads) as pool:
        pack_file(source, source.header(), path, partial, PassOrder(prefix, ranks), pool, lambda nbytes: None)
    return read_packed(path)


def unpack_bytes(path: Path) -> bytes:
    """The original of a packed file."""
    file, files = read_packed(path), Files()
    try:
        with ThreadPoolExecutor(2) as pool:
            return file.original_header + b"".join(part.tobytes() for part in original_bytes(file, files, pool))
    finally:
        files.close()


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a directory and below."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file, in place: whoever reads it meanwhile finds it whole."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), offset)


@dataclass
class Parts:
    """A packed file in parts that may be changed, to be put together again under a seal that holds."""

    metadata: dict[str, str]
    streams: dict[str, bytes]
    """In the order of the file, the last tensors but the seal included."""
    index: dict[str, Any]
    records: np.ndarray
    """Of the chunks, in the order of the file."""

    @classmethod
    def of(cls, path: Path) -> Parts:
        header, content = read_header(path), path.read_bytes()
        streams = {name: content[tensor.begin : tensor.end] for name, tensor in header.tensors.items()}
        index = json.loads(streams.pop(INDEX))
        count = sum(entry["chunks"] for entry in index["tensors"])
        records = np.frombuffer(streams.pop(CHUNKS), RECORD, count).copy()
        del streams[SEAL]
        return cls(dict(header.metadata), streams, index, records)

    def write(self, path: Path) -> None:
        """What was not changed in `streams` themselves comes from `index` and `records`."""
        self.streams.setdefault(CHUNKS, _filled(self.records.tobytes(), b"\0"))
        self.streams.setdefault(INDEX, _filled(json.dumps(self.index).encode(), b" "))
        names = [name for name in self.streams if name not in SERVICE]
        self.streams = {name: self.streams[name] for name in (*names, HEADER, CHUNKS, INDEX)}
        entries: dict[str, Any] = {"__metadata__": self.metadata}
        begin = 0
        for name, size in [*((name, len(part)) for name, part in self.streams.items()), (SEAL, 64)]:
            entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
            begin += size
        text = json.dumps(entries).encode()
        text = text.ljust(-(-(len(text) + 8) // 4096) * 4096 - 8)
        head = len(text).to_bytes(8, "little") + text
        tail = [self.streams[name] for name in (HEADER, CHUNKS, INDEX)]
        path.write_bytes(head + b"".join(self.streams.values()) + seal(head, *tail))


def _filled(content: bytes, filler: bytes) -> bytes:
    return content.ljust(-(-len(content) // 64) * 64, filler)
