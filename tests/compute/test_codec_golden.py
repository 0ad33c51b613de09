"""A packed chunk that was written once: every later version must read it, and write the same bytes.

`python tests/test_codec_golden.py` writes it anew, which a change of the format's version alone may ask for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from helpers import codec_reference as reference
from helpers.packing import decode, encode, one_chunk

U16 = npt.NDArray[np.uint16]
ROWS, COLS = 9, 333
FILES = {tier: Path(__file__).parents[1] / "golden" / f"packed.{tier}" for tier in ("coarse", "fine")}


def pseudo_random(count: int, seed: int) -> list[int]:
    """Numbers of 32 bits from a linear congruential generator (Knuth's MMIX), the same for ever."""
    state, numbers = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        numbers.append(state >> 32)
    return numbers


def weight(number: int, scale: int) -> int:
    """Exponents fall off as a normal distribution's do: by one for every zero among a few bits, seldom up by two."""
    zeros = (number >> 8 | 1 << 15) & -(number >> 8 | 1 << 15)
    exponent = scale - zeros.bit_length() + (2 if number >> 24 & 31 == 0 else 0)
    return (number >> 31) << 15 | exponent << 7 | number & 127


def matrix() -> U16:
    """Rows of all kinds: ordinary, wild ones among them, raw, constant, with few and far patches, of zeros."""
    rows = []
    for r in range(ROWS):
        numbers = pseudo_random(COLS, r)
        row = [weight(number, 100 + 9 * r) for number in numbers]
        if r == 3:
            row = [number & 0xFFFF for number in numbers]
        if r == 4:
            row = [0x3F80] * COLS
        if r == 5:
            row[7], row[300] = 0x7F80, 0x0001
        if r == 8:
            row = [0] * COLS
        rows.append(row)
    return np.array(rows, np.uint16)


def test_the_bytes_are_those_that_were_written_once() -> None:
    coarse, fine = encode(matrix())
    assert coarse.tobytes() == FILES["coarse"].read_bytes()
    assert fine.tobytes() == FILES["fine"].read_bytes()


def test_they_are_read(isa: str) -> None:
    coarse, fine = (np.fromfile(path, np.uint8) for path in FILES.values())
    assert (decode(one_chunk(coarse, fine, ROWS, COLS)) == matrix()).all()


def test_they_are_as_the_document_says() -> None:
    assert reference.encode(matrix()) == tuple(path.read_bytes() for path in FILES.values())


def test_they_have_raw_rows_and_others() -> None:
    words = np.fromfile(FILES["fine"], "<u4", ROWS)
    assert 1 <= (words >> 31).sum() <= 2


if __name__ == "__main__":
    for path, chunk in zip(FILES.values(), encode(matrix()), strict=True):
        path.write_bytes(chunk.tobytes())
