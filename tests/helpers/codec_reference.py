"""Packed chunks by docs/format.md, written out plainly: an encoder and a decoder to hold the fast ones to.

Both follow the document's text and share nothing with the C++ code. They are slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


class Malformed(Exception):  # noqa: N818
    """Bytes that break the format."""


def _position_order() -> list[int]:
    """The weight of a group at each position."""
    order = [0] * 64
    for h in range(2):
        for b in range(2):
            for l in range(4):  # noqa: E741
                for q in range(4):
                    order[16 * l + 8 * h + 2 * q + b] = 32 * h + 16 * b + 4 * l + q
    return order


ORDER = _position_order()


def _pad(data: bytes, multiple: int) -> bytes:
    return data + bytes(-len(data) % multiple)


def _pack_bits(bits: list[int]) -> bytes:
    return bytes(np.packbits(np.array(bits, np.uint8), bitorder="little"))


@dataclass
class Fields:
    """A row in the order of positions, filled up to whole groups for a unit."""

    sign: list[int]
    exponent: list[int]
    mantissa: list[int]

    @classmethod
    def of(cls, row: U16, unit: int) -> Fields:
        groups = -(-len(row) // 64)
        weights = [int(w) for w in row] + [((unit - 1) % 256) << 7] * (64 * groups - len(row))
        ordered = [weights[64 * g + i] for g in range(groups) for i in ORDER]
        return cls([w >> 15 for w in ordered], [w >> 7 & 255 for w in ordered], [w & 127 for w in ordered])


@dataclass
class Coded:
    """A row's classes, and its levels and patches as bytes."""

    classes: list[int]
    levels: bytes
    patches: bytes
    n: int


def _code(fields: Fields, unit: int) -> Coded:
    classes, depths, patches = [], [], []
    for position, exponent in enumerate(fields.exponent):
        below = [depth for depth in range(8) if exponent == (unit - 2 - depth) % 256]
        above = [c for c in (1, 2, 3) if exponent == (unit - 2 + c) % 256]
        classes.append(above[0] if above else 0 if below or exponent < unit else 3)
        depths.append(below[0] if below else 0)
        if not above and not below:
            patches.append((position, exponent))
    levels = b""
    strings = [depth for depth, c in zip(depths, classes, strict=True) if c == 0]
    for level in range(1, 8):
        levels += _pack_bits([int(depth >= level) for depth in strings])
        strings = [depth for depth in strings if depth >= level]
    gaps, values, literals, i = [], [], [], 0
    for position, exponent in patches:
        while position - i >= 255:
            gaps.append(255)
            i += 255
        gaps.append(position - i)
        i = position + 1
        named = [(unit + difference) % 256 for difference in (2, 3, -10)]
        values.append(named.index(exponent) if exponent in named else 3)
        if values[-1] == 3:
            literals.append(exponent)
    value_bits = [value >> bit & 1 for value in values for bit in (0, 1)]
    tail = (len(gaps) % 65536).to_bytes(2, "little") + bytes(gaps) + _pack_bits(value_bits) + bytes(literals)
    return Coded(classes, levels, tail, len(gaps))


def _mantissas(fields: Fields) -> bytes:
    data = b""
    for start in range(0, len(fields.mantissa), 64):
        group = fields.mantissa[start : start + 64]
        tops = [m >> bit & 1 for m in group[56:] for bit in range(7)]
        data += bytes(m | top << 7 for m, top in zip(group[:56], tops, strict=True))
    return data


def _size(ordered: npt.NDArray[np.int64], groups: int, unit: int) -> int:
    """Bytes of a row's data, from the exponents of its weights in the order of positions; -1 where there is none."""
    below = (unit - 2 - ordered) % 256
    deep = (below < 8) & (ordered >= 0)
    patched = ~deep & ((ordered - unit + 1) % 256 > 2) & (ordered >= 0)
    size = 56 * groups + 2 - (-int((deep | (patched & (ordered < unit))).sum()) // 8)
    for level in range(2, 8):
        size -= -int((deep & (below >= level - 1)).sum()) // 8
    [positions] = patched.nonzero()
    apart = np.diff(positions, prepend=-1) - 1
    named = ((ordered - unit) % 256 == 2) | ((ordered - unit) % 256 == 3) | ((unit - ordered) % 256 == 10)
    literals = int((patched & ~named).sum())
    return size + len(positions) + int((apart // 255).sum()) - -len(positions) // 4 + literals


def _class(exponent: int, unit: int) -> int:
    near = (exponent - unit + 2) % 256
    if near < 4:
        return near
    return 3 if exponent > unit and (unit - 2 - exponent) % 256 > 7 else 0


def _kept(lots: list[list[tuple[int, int]]]) -> float:
    """The squares that remain where the magnitudes of a lot are their mean; a lot has exponents and mantissas."""
    total = 0.0
    for lot in lots:
        magnitudes = 0.0
        for exponent in sorted({e for e, _ in lot}):
            magnitudes += sum(128 + m for e, m in lot if e == exponent) * 2.0**exponent
        if lot:
            total += magnitudes * magnitudes / len(lot)
    return total


def _larger_pays(row: U16, unit: int, more: int) -> bool:
    """Whether the coarse tier gains more from the unit unit + 1 than that row's bytes, so many more, cost."""
    weights = [(int(w) >> 7 & 255, int(w) & 127) for w in row]
    q = _kept([[w for w in weights if w[0] == e] for e in range(256)])
    small, large = (_kept([[w for w in weights if _class(w[0], s) == c] for c in range(4)]) for s in (unit, unit + 1))
    return more * q < len(row) * (large - small)


def _shortest(row: U16) -> tuple[int, int]:
    """The unit, and how many bytes more the next one takes."""
    groups = -(-len(row) // 64)
    exponents = np.full(64 * groups, -1, np.int64)
    exponents[: len(row)] = row >> 7 & 255
    ordered = exponents.reshape(groups, 64)[:, ORDER].reshape(-1)
    best = min(range(255, -1, -1), key=lambda unit: _size(ordered, groups, unit))
    return best, _size(ordered, groups, best + 1) - _size(ordered, groups, best)


def _encode_row(row: U16) -> tuple[int, bytes, bytes, bool]:
    """Unit, coarse groups, data, raw."""
    unit, more = _shortest(row)
    if unit < 255 and _larger_pays(row, unit, more):
        larger = _encode_with(row, unit + 1)
        if not larger[3]:
            return larger
    return _encode_with(row, unit)


def _encode_with(row: U16, unit: int) -> tuple[int, bytes, bytes, bool]:
    fields = Fields.of(row, unit)
    coded = _code(fields, unit)
    coarse = b""
    crowded = False
    for start in range(0, len(coded.classes), 64):
        classes = coded.classes[start : start + 64]
        crowded = crowded or classes.count(0) > 56
        coarse += _pack_bits([c & 1 for c in classes]) + _pack_bits([c >> 1 for c in classes])
        coarse += _pack_bits(fields.sign[start : start + 64])
    data = _mantissas(fields) + coded.levels + coded.patches
    if len(data) >= 2 * len(row) or crowded or coded.n > 65535:
        return unit, coarse, row.astype("<u2").tobytes(), True
    return unit, coarse, data, False


def encode(weights: U16) -> tuple[bytes, bytes]:
    """The coarse and the fine chunk of a matrix of BF16 bit patterns, each filled up to a multiple of 64 bytes."""
    rows = [_encode_row(row) for row in weights]
    coarse = _pad(bytes(row[0] for row in rows), 8) + b"".join(row[1] for row in rows)
    offsets, offset = b"", 4 * (len(rows) + 1)
    for _, _, data, raw in rows:
        offsets += (offset | raw << 31).to_bytes(4, "little")
        offset += len(data)
    offsets += offset.to_bytes(4, "little")
    fine = offsets + b"".join(row[2] for row in rows) + bytes(8)
    return _pad(coarse, 64), _pad(fine, 64)


def _need(condition: bool) -> None:
    if not condition:
        raise Malformed


def _bits(data: bytes) -> list[int]:
    return [int(bit) for bit in np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")]


class _Data:
    """A row's data, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        _need(count <= len(self.data))
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def take_bits(self, count: int) -> list[int]:
        bits = _bits(self.take(-(-count // 8)))
        _need(not any(bits[count:]))
        return bits[:count]


def _patches(data: _Data, unit: int, end: int) -> Iterator[tuple[int, int]]:
    gaps = data.take(int.from_bytes(data.take(2), "little"))
    bits = data.take_bits(2 * sum(gap != 255 for gap in gaps))
    values = [low + 2 * high for low, high in zip(bits[::2], bits[1::2], strict=True)]
    literals = iter(data.take(values.count(3)))
    _need(data.data == b"")
    i, each = 0, iter(values)
    for gap in gaps:
        i += gap
        if gap == 255:
            continue
        value = next(each)
        yield i, next(literals) if value == 3 else (unit + (2, 3, -10)[value]) % 256
        i += 1
    _need(i <= end)


def _decode_row(unit: int, coarse: bytes, bytes_: bytes, raw: bool, cols: int) -> U16:
    if raw:
        _need(len(bytes_) == 2 * cols)
        return np.frombuffer(bytes_, "<u2").astype(np.uint16)
    groups = -(-cols // 64)
    data = _Data(bytes_)
    low, high, sign = (
        [b for g in range(groups) for b in _bits(coarse[24 * g + i : 24 * g + i + 8])] for i in (0, 8, 16)
    )
    mantissa: list[int] = []
    for _ in range(groups):
        group = data.take(56)
        tops = [byte >> 7 for byte in group]
        mantissa += [byte & 127 for byte in group]
        mantissa += [sum(bit << i for i, bit in enumerate(tops[7 * j : 7 * j + 7])) for j in range(8)]
    classes = [a + 2 * b for a, b in zip(low, high, strict=True)]
    _need(all(classes[start : start + 64].count(0) <= 56 for start in range(0, len(classes), 64)))
    exponent = [(unit - 2 + c) % 256 for c in classes]
    members = [i for i, c in enumerate(classes) if c == 0]
    for _ in range(7):
        bits = data.take_bits(len(members))
        members = [i for i, bit in zip(members, bits, strict=True) if bit]
        for i in members:
            exponent[i] = (exponent[i] - 1) % 256
    for i, value in list(_patches(data, unit, 64 * groups)):
        exponent[i] = value
    row = np.zeros(64 * groups, np.uint16)
    for i, (s, e, m) in enumerate(zip(sign, exponent, mantissa, strict=True)):
        row[i // 64 * 64 + ORDER[i % 64]] = s << 15 | e << 7 | m
    return row[:cols]


def decode(coarse: bytes, fine: bytes, rows: int, cols: int) -> list[U16 | None]:
    """The rows of a chunk; None for one that breaks the format."""
    groups = -(-cols // 64)
    units = -(-rows // 8) * 8
    result: list[U16 | None] = []
    for r in range(rows):
        try:
            first = 4 * (rows + 1)
            _need(len(fine) >= first + 8)
            begin, end = (int.from_bytes(fine[4 * i : 4 * i + 4], "little") for i in (r, r + 1))
            _need(not (r == rows - 1 and end >> 31))
            raw, begin, end = bool(begin >> 31), begin & (2**31 - 1), end & (2**31 - 1)
            _need(begin == first if r == 0 else begin >= first)
            _need(begin <= end <= len(fine) - 8)
            row_coarse = coarse[units + 24 * groups * r : units + 24 * groups * (r + 1)]
            result.append(_decode_row(coarse[r], row_coarse, fine[begin:end], raw, cols))
        except Malformed:
            result.append(None)
    return result
