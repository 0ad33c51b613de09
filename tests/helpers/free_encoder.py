"""Packed chunks and files as docs/format.md allows them, whoever writes them: every choice it leaves open is drawn.

It follows the document's text and shares nothing with the code that it is to test: not the encoder's choices, nor its
sizes. `Choices` draws; the rest is arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from helpers.codec_reference import ORDER

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
I64 = npt.NDArray[np.int64]

BYTES = {"BF16": 2, "F16": 2, "F32": 4}
MOST_COLUMNS = 262_144
MIB = 1 << 20


@dataclass
class Choices:
    """What a writer of packed files is free to choose."""

    rng: np.random.Generator
    least_chunk_bytes: int = 64
    """Of raw chunks, so that a file has not too many."""

    def often(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def below(self, most: int, share: float) -> int:
        """A number below `most`, and 0 but for a share of the draws."""
        return int(self.rng.integers(most)) if self.often(share) else 0

    def rows_per_chunk(self, most: int, rows: int, row_bytes: int) -> int:
        least = min(most, -(-self.least_chunk_bytes // row_bytes))
        usual = [most, min(most, rows), rows // 2, rows // 3 + 1, 1, 2, 7, 64, 100, int(self.rng.integers(1, most + 1))]
        return min(most, max(least, int(self.rng.choice(usual))))

    def unit(self, exponents: I64) -> int:
        """Any will do; one near the row's own exponents leaves the fewest patches."""
        if self.often(0.05):
            return int(self.rng.integers(256))
        return int(exponents[self.rng.integers(len(exponents))] + self.rng.integers(-2, 4)) % 256


def padded(data: bytes, multiple: int, filler: bytes = b"\0") -> bytes:
    return data.ljust(-(-len(data) // multiple) * multiple, filler)


def _bytes(values: I64) -> bytes:
    return values.astype(np.uint8).tobytes()


def _bits(bits: npt.NDArray[Any]) -> bytes:
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes()


@dataclass(frozen=True)
class FreeRow:
    unit: int
    coarse: bytes
    data: bytes
    raw: bool


def encode_row(row: U16, choices: Choices) -> FreeRow:
    """With any unit, as it is or in tiers; weights that a class can say may be patched all the same."""
    unit = choices.unit((row >> 7 & 255).astype(np.int64))
    groups = -(-len(row) // 64)
    weights = np.full(64 * groups, (unit - 1) % 256 << 7, np.int64)
    weights[: len(row)] = row
    own = (np.arange(64 * groups) < len(row)).reshape(groups, 64)[:, ORDER].reshape(-1)
    weights = weights.reshape(groups, 64)[:, ORDER].reshape(-1)
    exponents = weights >> 7 & 255
    near, depth = (exponents - unit + 2) % 256, (unit - 2 - exponents) % 256
    patched = (near > 3) & (depth > 7)
    if choices.often(0.3):
        patched |= own & (choices.rng.random(len(own)) < (0.002, 0.05, 0.5)[choices.below(3, 1)])
    classes = np.where(patched, np.where(exponents > unit, 3, 0), np.where(depth < 8, 0, near))
    depth = np.where(patched, 0, depth)
    coarse = _bits(np.stack([part.reshape(groups, 64) for part in (classes & 1, classes >> 1, weights >> 15)], axis=1))
    crowded = ((classes == 0).reshape(groups, 64).sum(axis=1) > 56).any()
    patches = _patches(patched.nonzero()[0], exponents, unit, 64 * groups, choices)
    if crowded or patches is None or choices.often(0.04):
        return FreeRow(unit, coarse, row.astype("<u2").tobytes(), True)
    return FreeRow(unit, coarse, _mantissas(weights & 127) + _levels(depth[classes == 0]) + patches, False)


def _mantissas(mantissas: I64) -> bytes:
    by_group = mantissas.reshape(-1, 64)
    tops = (by_group[:, 56:, None] >> np.arange(7) & 1).reshape(-1, 56)
    return (by_group[:, :56] | tops << 7).astype(np.uint8).tobytes()


def _levels(depth: I64) -> bytes:
    levels = b""
    for level in range(1, 8):
        levels += _bits(depth >= level)
        depth = depth[depth >= level]
    return levels


def _patches(positions: I64, exponents: I64, unit: int, end: int, choices: Choices) -> bytes | None:
    distances = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(distances // 255 + 1)
    left = (end - 1 - int(positions[-1]) if len(positions) else end) // 255
    gaps = np.full((int(ends[-1]) if len(ends) else 0) + choices.below(left + 1, 0.1), 255)
    gaps[ends - 1] = distances % 255
    if len(gaps) > 65535:
        return None
    patched = exponents[positions]
    values = np.select([patched == (unit + change) % 256 for change in (2, 3, -10)], [0, 1, 2], 3)
    values[choices.rng.random(len(values)) < choices.below(3, 0.5) / 2] = 3
    bits = values[:, None] >> np.arange(2) & 1
    literals = patched[values == 3]
    return b"".join((len(gaps).to_bytes(2, "little"), _bytes(gaps), _bits(bits), _bytes(literals)))


def encode_chunk(weights: U16, choices: Choices) -> tuple[bytes, bytes]:
    """Coarse and fine, each filled up to a multiple of 64 bytes; the fine one no longer than with raw rows alone."""
    rows = [encode_row(row, choices) for row in weights]
    rows = [
        FreeRow(one.unit, one.coarse, row.astype("<u2").tobytes(), True) if len(one.data) > 2 * len(row) else one
        for one, row in zip(rows, weights, strict=True)
    ]
    coarse = padded(bytes(row.unit for row in rows), 8) + b"".join(row.coarse for row in rows)
    ends = np.cumsum([4 * (len(rows) + 1), *(len(row.data) for row in rows)])
    flags = np.array([*(row.raw for row in rows), False], np.int64) << 31
    fine = (ends | flags).astype("<u4").tobytes() + b"".join(row.data for row in rows) + bytes(8)
    return padded(coarse, 64), padded(fine, 64)


@dataclass(frozen=True)
class Cut:
    """How the document cuts a tensor."""

    planes: bool
    rows: int
    row_bytes: int
    most_rows_per_chunk: int

    @classmethod
    def of(cls, dtype: str, shape: Sequence[int]) -> Cut:
        rows, cols = shape if len(shape) == 2 else (1, prod(shape))
        if not 0 < cols <= MOST_COLUMNS or not rows:
            return cls(False, prod(shape) * BYTES[dtype], 1, MIB // 2)
        planes = dtype == "BF16" and len(shape) == 2 and rows * cols >= 65_536 and cols >= 256
        return cls(planes, rows, cols * BYTES[dtype], max(1, MIB // (2 * cols)))


@dataclass
class FreeFile:
    """A packed file in the making: streams, index entries, records of chunks."""

    choices: Choices
    streams: dict[str, bytes] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)

    def add(self, name: str, dtype: str, values: npt.NDArray[Any]) -> None:
        how = Cut.of(dtype, values.shape)
        step = self.choices.rows_per_chunk(how.most_rows_per_chunk, how.rows, how.row_bytes)
        chunks = -(-how.rows // step)
        if how.planes:
            pairs = [encode_chunk(values[i * step : (i + 1) * step], self.choices) for i in range(chunks)]
            coarse, fine = ([pair[tier] for pair in pairs] for tier in (0, 1))
            for tier in (coarse, fine):
                tier[-1] += bytes(-sum(map(len, tier)) % 4096)
            self.streams |= {f"{name}.coarse": b"".join(coarse), f"{name}.fine": b"".join(fine)}
        else:
            data, size = np.ascontiguousarray(values).tobytes(), step * how.row_bytes
            coarse, fine = [], [padded(data[i * size : (i + 1) * size], 64) for i in range(chunks)]
            self.streams[f"{name}.raw"] = b"".join(fine)
        self.records += [record(one, coarse[i] if coarse else None) for i, one in enumerate(fine)]
        entry = {"name": name, "codec": "planes" if how.planes else "raw", "rows_per_chunk": step, "chunks": chunks}
        self.entries.append(entry)

    def write(self, path: Path, original_header: bytes) -> None:
        index = {"version": 1, "header_bytes": len(original_header), "tensors": self.entries}
        tail = {
            "penstock.header": padded(original_header, 64),
            "penstock.chunks": padded(b"".join(self.records), 64),
            "penstock.index": padded(json.dumps(index).encode(), 64, b" "),
        }
        head = _head([(name, len(data)) for name, data in (self.streams | tail).items()] + [("penstock.seal", 64)])
        digest = xxhash.xxh3_64_intdigest(head + b"".join(tail.values())).to_bytes(8, "little")
        path.write_bytes(head + b"".join((self.streams | tail).values()) + digest + bytes(56))


def record(fine: bytes, coarse: bytes | None) -> bytes:
    """Of a chunk, in penstock.chunks."""
    hashes = (0 if data is None else xxhash.xxh3_64_intdigest(data) for data in (fine, coarse))
    return len(fine).to_bytes(4, "little") + b"".join(h.to_bytes(8, "little") for h in hashes)


def _head(sizes: Sequence[tuple[str, int]]) -> bytes:
    """All before the data, which begins where it would if all numbers had 16 digits."""

    def text(entries: Sequence[tuple[str, int, int, int]]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "penstock", "version": "1"}}
        for name, size, begin, end in entries:
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, end]}
        return json.dumps(header, separators=(",", ":")).encode()

    room = 8 + len(text([(name, 10**15, 10**15, 10**15) for name, _ in sizes]))
    ends = np.cumsum([size for _, size in sizes]).tolist()
    entries = [(name, size, end - size, end) for (name, size), end in zip(sizes, ends, strict=True)]
    content = text(entries).ljust(-(-room // 4096) * 4096 - 8)
    return len(content).to_bytes(8, "little") + content


def pack_freely(content: bytes, path: Path, choices: Choices) -> None:
    """Write the packed form of a safetensors file, whose bytes are `content`."""
    length = 8 + int.from_bytes(content[:8], "little")
    header: Mapping[str, Any] = json.loads(content[8:length])
    file, numpy_types = FreeFile(choices), {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    choices.rng.shuffle(entries)
    entries.sort(key=lambda pair: not Cut.of(pair[1]["dtype"], pair[1]["shape"]).planes)
    for name, entry in entries:
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[length + begin : length + end], numpy_types[entry["dtype"]])
        file.add(name, entry["dtype"], values.reshape(entry["shape"]))
    file.write(path, content[:length])
