"""Chunks that no encoder writes: refused row by row, alike by every instruction set and by the document."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import codec_reference as reference
from helpers.packing import decode, encode, gaussian, one_chunk
from helpers.thorough import examples
from penstock import _core
from penstock.compute import codec

U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Row:
    """The only row of a chunk, in parts that can be changed one by one."""

    cols: int
    unit: int
    coarse: bytes
    mantissas: bytes
    levels: tuple[bytes, ...]
    gaps: bytes
    values: bytes
    literals: bytes
    n: int | None = None  # if it is not the number of gaps
    more: bytes = b""

    @classmethod
    def of(cls, weights: U16) -> Row:
        coarse, fine = encode(weights.reshape(1, -1))
        begin, end = (int(word) for word in fine[:8].view("<u4"))
        groups, data = -(-weights.size // 64), fine[begin:end].tobytes()
        words = coarse[8 : 8 + 24 * groups].view("<u8").reshape(groups, 3)
        bits = sum(64 - int(low | high).bit_count() for low, high, _ in words)
        levels, at = [], 56 * groups
        for _ in range(7):
            levels.append(data[at : at + -(-bits // 8)])
            at += len(levels[-1])
            bits = int.from_bytes(levels[-1], "little").bit_count()
        n = int.from_bytes(data[at : at + 2], "little")
        gaps, rest = data[at + 2 : at + 2 + n], data[at + 2 + n :]
        n_values = -(-sum(gap != 255 for gap in gaps) // 4)
        parts = data[: 56 * groups], tuple(levels), gaps, rest[:n_values], rest[n_values:]
        row = cls(weights.size, int(coarse[0]), coarse[8 : 8 + 24 * groups].tobytes(), *parts)
        assert row.data() == data
        return row

    def data(self) -> bytes:
        n = len(self.gaps) if self.n is None else self.n
        patches = n.to_bytes(2, "little") + self.gaps + self.values + self.literals
        return self.mantissas + b"".join(self.levels) + patches + self.more

    def chunk(self) -> tuple[bytes, bytes]:
        data = self.data()
        coarse = bytes([self.unit]) + bytes(7) + self.coarse
        fine = (8).to_bytes(4, "little") + (8 + len(data)).to_bytes(4, "little") + data + bytes(8)
        return coarse + bytes(-len(coarse) % 64), fine + bytes(-len(fine) % 64)


def sound_row() -> Row:
    """It has every part: bits in all levels, patches of all values, some of them far apart."""
    weights = gaussian(1, 700, spread=0)
    weights[0, [3, 299, 300, 640, 641, 699]] = np.array([200, 7, 118, 130, 131, 0], np.uint16) << 7
    row = Row.of(weights)
    assert 255 in row.gaps
    assert len(row.literals) >= 2
    assert all(any(level) for level in row.levels[:5])
    return row


ROW = sound_row()
END = 11 * 64


def patched(gaps: list[int], values: list[int], literals: list[int]) -> Row:
    return replace(ROW, gaps=bytes(gaps), values=bytes(values), literals=bytes(literals))


def with_level(index: int, level: bytes) -> Row:
    return replace(ROW, levels=(*ROW.levels[:index], level, *ROW.levels[index + 1 :]))


def overfull() -> Row:
    """A bit is set behind the last one of the deepest level that does not fill its last byte."""
    counts = [int.from_bytes(level, "little").bit_count() for level in ROW.levels[:-1]]
    index = max(i for i, count in enumerate(counts, 1) if count % 8)
    level = ROW.levels[index]
    return with_level(index, level[:-1] + bytes([level[-1] | 0x80]))


def crowded(count: int) -> Row:
    """The first group has `count` weights of class 0, 64 at most; the encoder stops at 56."""
    exponents = np.array([116] * 56 + [120] * 72)
    row = Row.of(
        (exponents << 7).astype(np.uint16)[np.argsort(np.array(reference.ORDER + [64 + i for i in range(64)]))]
    )
    words = [int.from_bytes(row.coarse[i : i + 8], "little") for i in range(0, 16, 8)]
    keep = (1 << 64) - (1 << count)
    words = [word & keep for word in words]
    bits = int.from_bytes(row.levels[0], "little")
    level = bits.to_bytes(-(-count // 8), "little")
    coarse = b"".join(word.to_bytes(8, "little") for word in words) + row.coarse[16:]
    return replace(row, coarse=coarse, levels=(level, *row.levels[1:]))


SOUND = {
    "as encoded": ROW,
    "no patches": patched([], [], []),
    "gaps up to the very end": patched([255, 255, END - 511], [0], []),
    "only markers": patched([255, 255], [], []),
    "the first and the last": patched([0, 255, 255, END - 512], [0b1010], []),
    "four literals": patched([1, 1, 1, 1], [255], [0, 255, 1, 254]),
    "28 patches": patched([3] * 28, [0b11100100] * 7, [9] * 7),
    "300 patches": patched([1] * 300, [0b11100100] * 75, [9] * 75),
    "56 of class 0": crowded(56),
}
REFUSED = {
    "57 of class 0": crowded(57),
    "64 of class 0": crowded(64),
    "no data": replace(ROW, mantissas=b"", levels=(), gaps=b"", values=b"", literals=b"", n=0),
    "mantissas too short": replace(ROW, mantissas=ROW.mantissas[:-1], levels=(), gaps=b"", values=b"", literals=b""),
    "nothing but mantissas": replace(ROW, levels=(), gaps=b"", values=b"", literals=b"", n=0),
    "a level too long": with_level(0, ROW.levels[0] + b"\0"),
    "a level too short": with_level(0, ROW.levels[0][:-1]),
    "a level overfull": overfull(),
    "a bit more in level 2": with_level(1, bytes([ROW.levels[1][0] ^ 1]) + ROW.levels[1][1:]),
    "a byte more": replace(ROW, more=b"\0"),
    "a literal less": replace(ROW, literals=ROW.literals[1:]),
    "a literal more": replace(ROW, literals=ROW.literals + b"\0"),
    "a gap less": replace(ROW, gaps=ROW.gaps[1:]),
    "more gaps than there are": replace(ROW, n=len(ROW.gaps) + 1),
    "gaps past the chunk": replace(ROW, n=65535),
    "values missing": replace(ROW, values=b"", literals=b""),
    "values overfull": patched([1, 1], [0b00010000], []),
    "a patch past the end": patched([255, 255, END - 510], [0], []),
    "markers past the end": patched([255, 255, 255], [], []),
    "300 patches, a literal less": patched([1] * 300, [0b11100100] * 75, [9] * 74),
    "300 patches, one of them past the end": patched([1] * 299 + [254], [0b11100100] * 75, [9] * 75),
}


def verdicts(coarse: bytes, fine: bytes, rows: int, cols: int) -> list[list[list[int] | None]]:
    """What the document and every instruction set make of each row: its weights, or None."""
    expected = reference.decode(coarse, fine, rows, cols)
    results = [[None if row is None else row.tolist() for row in expected]]
    packed = one_chunk(np.frombuffer(coarse, np.uint8), np.frombuffer(fine, np.uint8), rows, cols)
    before = _core.isa()
    for name in _core.isas():
        _core.set_isa(name)
        results.append([weights_of(packed, row) for row in range(rows)])
        refused = [row for row, weights in enumerate(results[0]) if weights is None]
        assert first_refused(packed) == (refused[0] if refused else None)
    _core.set_isa(before)
    return results


def weights_of(packed: codec.PackedRows, row: int) -> list[int] | None:
    try:
        return [int(weight) for weight in decode(packed, row, row + 1)[0]]
    except codec.MalformedRow as error:
        return None if error.row == row else [-1]


def first_refused(packed: codec.PackedRows) -> int | None:
    """By decoding all rows at once."""
    try:
        decode(packed)
    except codec.MalformedRow as error:
        return error.row
    return None


@pytest.mark.parametrize("name", SOUND)
def test_a_row_that_is_as_the_document_says(name: str) -> None:
    first, *others = verdicts(*SOUND[name].chunk(), 1, SOUND[name].cols)
    assert first != [None]
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_breaks_the_format(name: str) -> None:
    results = verdicts(*REFUSED[name].chunk(), 1, REFUSED[name].cols)
    assert all(result == [None] for result in results)


def offsets(**changes: int) -> tuple[bytes, bytes]:
    """A chunk of three rows, the second raw, whose words of offsets are changed: "w2" is the third."""
    weights = gaussian(3, 200)
    weights[1] = np.random.default_rng(0).integers(0, 0x7F80, 200)
    coarse, fine = encode(weights)
    words = fine[:16].view("<u4")
    assert words[1] >> 31
    for name, change in changes.items():
        words[int(name[1:])] = (int(words[int(name[1:])]) + change) % 2**32
    return coarse.tobytes(), fine.tobytes()


@pytest.mark.parametrize(
    ("chunk", "refused"),
    [
        (offsets(), [False, False, False]),
        (offsets(w0=2**31), [True, False, False]),
        (offsets(w0=4), [True, False, False]),
        (offsets(w0=-4), [True, False, False]),
        (offsets(w0=2**30), [True, False, False]),
        (offsets(w1=2**31), [False, True, False]),
        (offsets(w1=2), [True, True, False]),
        (offsets(w1=2**30), [True, True, False]),
        (offsets(w2=-2), [False, True, True]),
        (offsets(w2=2**31), [False, False, True]),
        (offsets(w3=1), [False, False, True]),
        (offsets(w3=2**31), [False, False, True]),
        (offsets(w3=2**20), [False, False, True]),
        (offsets(w3=-(2**31)), [False, False, True]),
    ],
)
def test_offsets(chunk: tuple[bytes, bytes], refused: list[bool]) -> None:
    results = verdicts(*chunk, 3, 200)
    assert all([row is None for row in result] == refused for result in results)


@pytest.mark.parametrize("size", [0, 4, 15, 16, 23, 24, 64])
def test_chunks_too_small_for_what_they_hold(size: int) -> None:
    coarse, fine = offsets()
    results = verdicts(coarse, fine[:size], 3, 200)
    assert all(result == [None, None, None] for result in results)


@settings(max_examples=examples(200))
@given(data=st.data(), rows=st.integers(1, 6), cols=st.integers(1, 400), seed=st.integers(0, 3))
def test_any_bytes_mean_the_same_to_all_or_nothing(data: st.DataObject, rows: int, cols: int, seed: int) -> None:
    coarse, fine = (chunk.copy() for chunk in encode(gaussian(rows, cols, seed)))
    for _ in range(data.draw(st.integers(1, 6))):
        chunk = data.draw(st.sampled_from([coarse, fine, fine]))
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    first, *others = verdicts(coarse.tobytes(), fine.tobytes(), rows, cols)
    assert all(other == first for other in others)


@settings(max_examples=examples(60))
@given(coarse=st.binary(min_size=64, max_size=64), fine=st.binary(min_size=64, max_size=1024), cols=st.integers(1, 64))
def test_noise(coarse: bytes, fine: bytes, cols: int) -> None:
    first, *others = verdicts(coarse, fine, 1, cols)
    assert all(other == first for other in others)
