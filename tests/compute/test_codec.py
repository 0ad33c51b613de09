"""Packing and unpacking, against a plain reading of docs/format.md."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import codec_reference as reference
from helpers.packing import as_bytes, decode, encode, gaussian, one_chunk, pack
from helpers.thorough import examples
from penstock import _core
from penstock.architectures.names import is_embedding
from penstock.compute import codec

U16 = npt.NDArray[np.uint16]


def with_exponents(exponents: list[int], seed: int = 0) -> U16:
    """A row with these exponents, and random signs and mantissas."""
    other = np.random.default_rng(seed).integers(0, 65536, len(exponents), np.uint16)
    return ((np.array(exponents, np.uint16) << 7) | (other & 0x807F)).reshape(1, -1)


def far_apart(gaps: list[int]) -> U16:
    """Exponent 120, but for weights whose positions are these gaps apart."""
    positions = np.cumsum(np.array(gaps) + 1) - 1
    exponents = np.full(-(-(positions[-1] + 1) // 64) * 64, 120)
    exponents[positions // 64 * 64 + np.array(reference.ORDER)[positions % 64]] = 90
    return with_exponents(exponents.tolist())


def sparse(cols: int, every: int) -> U16:
    """Normal weights, of which some are zero."""
    weights = gaussian(2, cols)
    weights[:, ::every] = 0
    return weights


CASES: dict[str, U16] = {
    "a multiple of 64": gaussian(3, 192),
    "odd": gaussian(3, 1001),
    "one column": gaussian(9, 1),
    "63, 64, 65 columns": gaussian(1, 63),
    "64": gaussian(2, 64),
    "65": gaussian(2, 65),
    "zeros": np.zeros((2, 130), np.uint16),
    "minus zeros": np.full((2, 130), 0x8000, np.uint16),
    "NaNs": np.full((1, 300), 0x7FC1, np.uint16),
    "NaNs among numbers": np.where(np.arange(600) % 50 == 7, 0xFFFF, gaussian(2, 600)).astype(np.uint16),
    "constant rows": np.repeat(np.array([[0x3F80], [0xC123], [0x0001], [0x7F80]], np.uint16), 200, axis=1),
    "two exponents, far apart": with_exponents([100, 200] * 150),
    "noise": np.random.default_rng(3).integers(0, 65536, (2, 400), np.uint16),
    "a few wild ones": np.where(np.arange(900) % 37 == 5, 0x1234, gaussian(2, 900)).astype(np.uint16),
    "few zeros": sparse(640, 80),
    "many zeros": sparse(640, 3),
    "crowded": with_exponents([110] * 57 + [120] * 71),
    "not quite crowded": with_exponents([110] * 56 + [120] * 72),
    "exponents 0 to 12": gaussian(2, 500, spread=0) & 0x867F,
    "around 255": with_exponents([250, 251, 252, 253, 254, 255, 254, 253, 252, 253, 254, 255] * 30),
    "around 0": with_exponents([0, 0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0] * 30),
    "both ends": with_exponents([255, 0, 0, 1, 255, 254, 0, 1, 255, 0] * 40),
    "gaps": far_apart([0, 0, 1, 63, 64, 253, 254, 255, 256, 300, 508, 509, 510, 511, 765, 2000]),
    "a gap at the end": far_apart([1000]),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_document(name: str) -> None:
    weights = CASES[name]
    coarse, fine = encode(weights)
    assert (bytes(coarse), bytes(fine)) == reference.encode(weights)


@pytest.mark.parametrize("name", CASES)
def test_weights_come_back(isa: str, name: str) -> None:
    weights = CASES[name]
    coarse, fine = encode(weights)
    assert (decode(one_chunk(coarse, fine, *weights.shape)) == weights).all()


@pytest.mark.parametrize("name", CASES)
def test_the_document_reads_them_too(name: str) -> None:
    weights = CASES[name]
    coarse, fine = encode(weights)
    rows = reference.decode(bytes(coarse), bytes(fine), *weights.shape)
    assert [list(row) for row in rows if row is not None] == weights.tolist()


@pytest.mark.parametrize("shape", [(16, 4096), (65536, 1), (1, 65536), (1024, 64)])
def test_every_pattern_survives(isa: str, shape: tuple[int, int]) -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    for weights in (patterns.reshape(shape), np.random.default_rng(0).permutation(patterns).reshape(shape)):
        assert (decode(pack(weights)) == weights).all()


@pytest.mark.parametrize("exponent", range(0, 256, 15))
def test_every_mantissa_and_sign_at_every_position(isa: str, exponent: int) -> None:
    """Beside an ordinary exponent, so that the rows are not raw."""
    patterns = np.arange(256, dtype=np.uint16)
    same_exponent = (patterns & 0x7F) | (patterns & 0x80) << 8 | np.uint16(exponent << 7)
    weights = np.stack([np.roll(same_exponent, shift) for shift in range(64)])
    coarse, fine = encode(weights)
    assert len(fine) < weights.nbytes
    assert (decode(one_chunk(coarse, fine, *weights.shape)) == weights).all()


exponent_rows = st.one_of(
    st.lists(st.integers(0, 255), min_size=1, max_size=200),
    st.tuples(st.integers(0, 255), st.lists(st.integers(-12, 4), min_size=1, max_size=300)).map(
        lambda row: [(row[0] + difference) % 256 for difference in row[1]]
    ),
    st.tuples(st.integers(0, 255), st.lists(st.integers(0, 40), min_size=64, max_size=300)).map(
        lambda row: [(row[0] - (n * (n + 1) // 90)) % 256 for n in row[1]]
    ),
)


@settings(max_examples=examples(120))
@given(exponents=exponent_rows, seed=st.integers(0, 5))
def test_any_exponents(exponents: list[int], seed: int) -> None:
    weights = with_exponents(exponents, seed)
    coarse, fine = encode(weights)
    assert (bytes(coarse), bytes(fine)) == reference.encode(weights)
    for isa in _core.isas():
        before = _core.isa()
        _core.set_isa(isa)
        assert (decode(one_chunk(coarse, fine, *weights.shape)) == weights).all()
        _core.set_isa(before)


@pytest.mark.parametrize(("rows", "cols", "step"), [(67, 1001, 10), (67, 1001, 67), (5, 64, 1), (130, 513, 64)])
def test_rows_of_several_chunks(isa: str, rows: int, cols: int, step: int) -> None:
    weights = gaussian(rows, cols)
    packed = pack(weights, step)
    assert (decode(packed) == weights).all()
    for begin, end in [(0, 0), (0, 1), (rows - 1, rows), (rows // 3, 2 * rows // 3 + 1), (rows, rows)]:
        assert (decode(packed, begin, end) == weights[begin:end]).all()


def test_input_and_output_at_any_address(isa: str) -> None:
    weights = gaussian(3, 333)
    expected = encode(weights)
    for offset in range(0, 66, 5):
        moved, coarse, fine, out = (np.zeros(6000, np.uint8)[offset:] for _ in range(4))
        moved = moved[: weights.nbytes]
        moved[:] = as_bytes(weights)
        n = codec.encode(moved, 3, 333, coarse, fine)
        assert (fine[:n] == expected[1]).all()
        assert (coarse[: len(expected[0])] == expected[0]).all()
        codec.decode(one_chunk(coarse, fine[:n], 3, 333), 0, 3, out[: weights.nbytes])
        assert (out[: weights.nbytes] == as_bytes(weights)).all()


def test_normal_weights_take_two_thirds() -> None:
    packed = pack(gaussian(256, 4096))
    assert (packed.coarse.nbytes + packed.fine.nbytes) / (256 * 4096 * 2) < 0.6718


class TestUnits:
    """Units that rows of exponents 125 to 127 and a few larger ones get; 126 makes all of them shortest."""

    def unit(self, exponents: list[int]) -> int:
        coarse, _ = encode(with_exponents(exponents))
        return int(coarse[0])

    def test_the_shortest_row_where_classes_tell_all_weights_apart(self) -> None:
        assert self.unit([125, 126, 127] * 200) == 126

    def test_the_next_one_where_large_weights_would_be_as_one(self) -> None:
        spread = ([125] + [126, 127] * 5) * 60
        assert self.unit(spread + [129] * 2) == 127

    def test_not_where_the_row_would_be_raw_with_it(self) -> None:
        crowded = [125] * 60 + [126, 127] * 300
        assert self.unit(crowded + [129] * 2) == 126


def test_threads_may_share_the_codec() -> None:
    weights = [gaussian(40, 500, seed) for seed in range(4)]
    expected = [encode(w) for w in weights]
    failures: list[Any] = []

    def work(i: int) -> None:
        for _ in range(5):
            coarse, fine = encode(weights[i])
            same = (coarse == expected[i][0]).all() and (fine == expected[i][1]).all()
            if not (same and (decode(one_chunk(coarse, fine, 40, 500)) == weights[i]).all()):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((256, 256), "BF16", True),
        ((256, 255), "BF16", False),
        ((256, 256 * 256), "BF16", True),
        ((65536, 1), "BF16", False),
        ((512, 255), "BF16", False),
        ((1, 1 << 18), "BF16", True),
        ((1, (1 << 18) + 1), "BF16", False),
        ((256, 256), "F16", False),
        ((65536,), "BF16", False),
        ((2, 256, 256), "BF16", False),
        ((0, 4096), "BF16", False),
    ],
)
def test_what_is_packed(shape: tuple[int, ...], dtype: str, expected: bool) -> None:
    assert codec.is_packed(shape, dtype) is expected


@pytest.mark.parametrize(
    ("cols", "name", "expected"),
    [
        (4096, "model.layers.0.mlp.up_proj.weight", 128),
        (14336, "lm_head.weight", 36),
        (4096, "model.embed_tokens.weight", 4),
        (100_000, "model.embed_tokens.weight", 1),
        (1, "x", 524288),
        (1 << 18, "x", 2),
    ],
)
def test_rows_of_a_chunk(cols: int, name: str, expected: int) -> None:
    assert codec.rows_per_chunk(cols, is_embedding(name)) == expected


def test_sizes() -> None:
    assert codec.coarse_bytes(1, 1) == 64
    assert codec.coarse_bytes(128, 4096) == 128 + 128 * 64 * 24
    assert codec.coarse_bytes(9, 65) == 64 * 7
    assert codec.most_fine_bytes(1, 1) == 64
    assert codec.most_fine_bytes(128, 4096) == 1_049_152


def arrays(**changes: Any) -> dict[str, Any]:
    packed = pack(gaussian(8, 64), 4)
    names = "rows", "cols", "rows_per_chunk", "coarse", "fine", "fine_offsets"
    return {name: getattr(packed, name) for name in names} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 3}, "length of fine_offsets is 3, expected 2"),
        ({"rows_per_chunk": 3}, "coarse is too short"),
        ({"rows": 13}, "coarse is too short"),
        ({"rows": 0}, "at least one row"),
        ({"rows": 1 << 62}, "too many rows"),
        ({"cols": 0}, "rows of 1 to 262144 weights"),
        ({"cols": (1 << 18) + 1}, "rows of 1 to 262144 weights"),
        ({"cols": 640}, "coarse is too short"),
        ({"rows_per_chunk": 0}, "rows_per_chunk must be positive"),
        ({"coarse": np.zeros(10, np.uint8)}, "coarse is too short"),
        ({"fine_offsets": np.array([-64, 0, 64])}, "must not be negative"),
        ({"fine_offsets": np.array([0, 128, 64])}, "must not descend"),
        ({"fine_offsets": np.array([0, 64, 1 << 40])}, "fine_offsets end past fine"),
    ],
)
def test_arrays_that_cannot_be_chunks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.PackedRows(**arrays(**changes))


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (2, 1), (0, 9)])
def test_rows_outside_the_matrix(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match="rows to decode lie outside the matrix"):
        codec.decode(codec.PackedRows(**arrays()), begin, end, np.zeros(max(0, end - begin) * 128, np.uint8))


def test_an_output_of_the_wrong_size() -> None:
    with pytest.raises(ValueError, match="bytes of out is 127, expected 128"):
        codec.decode(codec.PackedRows(**arrays()), 0, 1, np.zeros(127, np.uint8))


def test_scratch_that_is_too_small() -> None:
    scratch = np.zeros(_core.decoder_scratch_bytes(64) - 64, np.uint8)
    with pytest.raises(ValueError, match="scratch is too small"):
        _core.decode_rows(codec.PackedRows(**arrays()), 0, 1, np.zeros(128, np.uint8), scratch)


def test_arrays_live_as_long_as_what_was_made_of_them() -> None:
    weights = gaussian(8, 64)
    packed = pack(weights, 4)
    parts = [weakref.ref(array) for array in (packed.coarse, packed.fine, packed.fine_offsets)]
    gc.collect()
    assert (decode(packed) == weights).all()
    assert all(part() is not None for part in parts)
    del packed
    assert all(part() is None for part in parts)


@pytest.mark.parametrize(
    ("weights", "coarse", "fine", "rows", "message"),
    [
        (1023, 832, 1152, 8, "bytes of weights is 1023, expected 1024"),
        (1024, 63, 1152, 8, "coarse is too small"),
        (1024, 832, 1087, 8, "fine is too small"),
        (0, 832, 1152, 0, "at least one row"),
    ],
)
def test_encoding_into_arrays_of_the_wrong_size(weights: int, coarse: int, fine: int, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(np.zeros(weights, np.uint8), rows, 64, np.zeros(coarse, np.uint8), np.zeros(fine, np.uint8))
