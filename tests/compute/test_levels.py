"""Products that draft: the bits that cpp/kernels/draft.h says, whatever the instruction set; and close to the truth."""

from __future__ import annotations

import gc
import math
import mmap
import weakref
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec_reference import ORDER
from helpers.forbidden import forbid
from helpers.numerics_oracles import instruction_set, same_bits, tree
from helpers.packing import as_bytes, gaussian, pack
from helpers.thorough import examples, quick
from penstock import _core
from penstock.compute import codec
from penstock.compute.kernels import F32, U8, Kernels
from penstock.compute.levels import BLOCK, MOST_LEVEL, CoarseChunks, CoarseRows, NibbleRows, likely_levels, nibble_bytes

I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
NIBBLES = np.array([-63, -48, -37, -29, -22, -15, -9, -3, 3, 9, 15, 22, 29, 37, 48, 63])


def widened(weights: U16) -> F32:
    return (weights.astype(np.uint32) << 16).view(np.float32)


def whole(values: npt.NDArray[np.generic], multiple: int) -> npt.NDArray[np.generic]:
    """Columns filled up with zeros."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % multiple)))


def bits(coarse: U8) -> U8:
    return np.unpackbits(coarse, bitorder="little")


def coarse_fields(coarse: CoarseRows) -> tuple[I64, I64, I64]:
    """Units [rows], and the classes and signs of whole groups [rows, columns], by docs/format.md."""
    groups = -(-coarse.cols // 64)
    units, classes, signs = [], [], []
    stream, step = np.concatenate(coarse.chunks.arrays), coarse.chunks.rows_per_chunk
    at = 0
    for first in range(0, coarse.rows, step):
        rows = min(step, coarse.rows - first)
        units += stream[at : at + rows].tolist()
        at += -(-rows // 8) * 8
        end = at + rows * groups * 24
        words = bits(stream[at:end]).reshape(rows, groups, 3, 64).astype(np.int64)
        at = -(-end // 64) * 64
        in_order = np.empty_like(words)
        in_order[..., ORDER] = words
        classes.append((in_order[:, :, 0] + 2 * in_order[:, :, 1]).reshape(rows, -1))
        signs.append(in_order[:, :, 2].reshape(rows, -1))
    return np.array(units), np.concatenate(classes), np.concatenate(signs)


def coarse_integers(coarse: CoarseRows) -> I64:
    """The levels of whole groups."""
    _, classes, signs = coarse_fields(coarse)
    magnitudes = np.minimum(coarse.magnitudes, MOST_LEVEL).astype(np.int64)
    return np.where(signs == 1, -1, 1) * np.take_along_axis(magnitudes, classes, axis=1)


def nibble_integers(nibbles: NibbleRows) -> I64:
    halves = nibbles.data.reshape(nibbles.rows, -1, 32)
    positions = NIBBLES[np.concatenate([halves & 15, halves >> 4], axis=2)]
    in_order = np.empty_like(positions)
    in_order[..., ORDER] = positions
    return in_order.reshape(nibbles.rows, -1)


def quantized(x: F32) -> tuple[I64, F32]:
    """int8 values of whole blocks, and the scales of the blocks."""
    blocks = whole(x, BLOCK).reshape(len(x), -1, BLOCK)
    most = np.abs(blocks).max(2)
    zero = most < 2.0**-100
    factor = np.where(zero, 0, np.float32(127) / np.where(zero, 1, most)).astype(np.float32)
    values = np.rint(blocks * factor[..., None]).astype(np.int64)
    return values.reshape(len(x), -1), np.where(zero, 0, most / np.float32(127)).astype(np.float32)


def lanes_of(x: I64, w: I64) -> I64:
    """Sums over each block, by lanes [rows of x, rows of w, blocks, 16]."""

    def arranged(values: I64) -> I64:
        groups = whole(values, BLOCK).reshape(len(values), -1, BLOCK // 64, 64)[..., ORDER]
        return groups.reshape(*groups.shape[:3], 16, 4).astype(np.int64)

    return np.einsum("rbglq,wbglq->rwbl", arranged(x), arranged(w))


def product(x: F32, integers: I64, block_scales: F32 | None) -> F32:
    """By the steps of the contract, before scales of rows."""
    values, scales = quantized(x)
    lanes = lanes_of(values, integers).astype(np.float32)
    total = np.zeros((len(x), len(integers), 16), np.float32)
    for b in range(scales.shape[1]):
        term = lanes[:, :, b] * scales[:, None, b, None]
        if block_scales is not None:
            term = term * block_scales[None, :, b, None]
        total = total + term
    return tree(total)


def coarse_product(x: F32, coarse: CoarseRows) -> F32:
    return product(x, coarse_integers(coarse), None) * coarse.scales


def nibble_product(x: F32, nibbles: NibbleRows) -> F32:
    return product(x, nibble_integers(nibbles), nibbles.scales.reshape(nibbles.rows, -1))


def coarse_of(weights: U16, rows_per_chunk: int | None = None, seed: int = 0) -> CoarseRows:
    """With magnitudes and scales of any kind; some magnitudes above the most."""
    packed = pack(weights, rows_per_chunk)
    rng = np.random.default_rng(seed)
    magnitudes = rng.integers(0, 70, (packed.rows, 4)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, packed.rows).astype(np.float32)
    return CoarseRows(chunks_of(packed), magnitudes, scales)


def chunks_of(packed: codec.PackedRows) -> CoarseChunks:
    return CoarseChunks(packed.rows, packed.cols, packed.rows_per_chunk, [packed.coarse])


def elsewhere(chunks: CoarseChunks, *arrays: U8) -> CoarseChunks:
    return CoarseChunks(chunks.rows, chunks.cols, chunks.rows_per_chunk, arrays)


def activations(rows: int, cols: int, seed: int = 0) -> F32:
    rng = np.random.default_rng([rows, cols, seed])
    return rng.standard_normal((rows, cols), np.float32) * rng.choice(np.float32([0.01, 1, 30]), (rows, 1))


def by_coarse(kernels: Kernels, x: F32, coarse: CoarseRows) -> F32:
    out = np.full((len(x), coarse.rows), np.nan, np.float32)
    kernels.matmul_coarse(x, coarse, out)
    return out


def by_nibbles(kernels: Kernels, x: F32, nibbles: NibbleRows) -> F32:
    out = np.full((len(x), nibbles.rows), np.nan, np.float32)
    kernels.matmul_nibbles(x, nibbles, out)
    return out


@pytest.mark.parametrize("cols", [1, 63, 64, 65, 128, 300, 511, 512, 513, 1001, 2112])
def test_every_remainder_of_columns(isa: str, cols: int) -> None:
    kernels, weights = Kernels(2), gaussian(7, cols)
    coarse, nibbles = coarse_of(weights, 3), kernels.quantize_nibbles(as_bytes(weights), 7, cols)
    for rows in (1, 2, 5, 9, 18):
        x = activations(rows, cols)
        assert same_bits(by_coarse(kernels, x, coarse), coarse_product(x, coarse))
        assert same_bits(by_nibbles(kernels, x, nibbles), nibble_product(x, nibbles))


def test_every_number_of_rows_and_outputs(isa: str) -> None:
    kernels, weights = Kernels(1), gaussian(14, 200)
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14):
        coarse = coarse_of(weights[:n], 5)
        nibbles = kernels.quantize_nibbles(as_bytes(weights[:n]), n, 200)
        for rows in range(1, 20):
            x = activations(rows, 200)
            assert same_bits(by_coarse(kernels, x, coarse), coarse_product(x, coarse))
            assert same_bits(by_nibbles(kernels, x, nibbles), nibble_product(x, nibbles))


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 64), (40, 83), (70, 600)])
def test_what_coarse_weights_stand_for(isa: str, rows: int, cols: int) -> None:
    coarse, kernels = coarse_of(gaussian(rows, cols), 16), Kernels(2)
    out = np.empty((rows, cols), np.float32)
    kernels.widen_coarse(coarse, out)
    levels = coarse_integers(coarse)[:, :cols].astype(np.float32)
    assert same_bits(out, levels * coarse.scales[:, None] + np.float32(0))


@pytest.mark.parametrize("threads", quick([1, 3], [1, 2, 3]))
@pytest.mark.parametrize("rows", quick([1, 65], [1, 63, 64, 65, 200]))
def test_many_rows_outputs_and_threads(isa: str, rows: int, threads: int) -> None:
    kernels, weights = Kernels(threads, 64 << 10), gaussian(150, 600)
    coarse, nibbles = coarse_of(weights, 64), kernels.quantize_nibbles(as_bytes(weights), 150, 600)
    x = activations(rows, 600)
    assert same_bits(by_coarse(kernels, x, coarse), coarse_product(x, coarse))
    assert same_bits(by_nibbles(kernels, x, nibbles), nibble_product(x, nibbles))


@settings(max_examples=examples(60))
@given(
    rows=st.integers(1, 80),
    n=st.integers(1, 60),
    cols=st.integers(1, 1300),
    step=st.integers(1, 60),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_instruction_sets_agree(rows: int, n: int, cols: int, step: int, threads: int, seed: int) -> None:
    weights = gaussian(n, cols, seed)
    coarse, x = coarse_of(weights, step, seed), activations(rows, cols, seed)
    source, found = as_bytes(weights), []
    for name in _core.isas():
        with instruction_set(name):
            pool = _core.ThreadPool(threads, 1 << 20)
            outs = [np.full((rows, n), np.nan, np.float32) for _ in range(2)]
            quantized = np.empty(_core.quantized_bytes(rows, cols), np.uint8)
            _core.matmul_coarse(pool, x, coarse, outs[0], quantized)
            data, scales = np.empty(n * -(-cols // 64) * 32, np.uint8), np.empty(n * -(-cols // BLOCK), np.float32)
            _core.quantize_nibbles(pool, source, n, cols, data, scales)
            _core.matmul_nibbles(pool, x, data, scales, outs[1], quantized)
            counts, units = np.empty((n, 4), np.int32), np.empty(n, np.uint8)
            _core.count_classes(pool, coarse.chunks, counts, units)
            found.append((*outs, data, scales, counts, units))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert same_bits(found[0][0], coarse_product(x, coarse))


def test_the_extremes_of_levels_and_activations(isa: str) -> None:
    """No sum of products overflows where every one is the largest."""
    kernels, cols = Kernels(1), 4096
    signs = np.where(np.random.default_rng(0).random((6, cols)) < 0.5, -1, 1)
    signs[:2] = [[1], [-1]]
    weights = (np.float32(3) * signs).astype(np.float32).view(np.uint32) >> 16
    coarse = coarse_of(weights.astype(np.uint16))
    coarse = CoarseRows(coarse.chunks, np.full((6, 4), 255, np.uint8), np.ones(6, np.float32))
    for rows in (1, 20):
        x = np.ones((rows, cols), np.float32)
        x[-1] = -1
        expected = x.astype(np.float64) @ signs.T * 63
        assert np.allclose(by_coarse(kernels, x, coarse), expected, rtol=1e-5, atol=1e-3)
        assert same_bits(by_coarse(kernels, x, coarse), coarse_product(x, coarse))


def test_zeros_tiny_values_and_values_that_are_not_finite(isa: str) -> None:
    kernels, weights = Kernels(1), gaussian(9, 1100)
    coarse, nibbles = coarse_of(weights), kernels.quantize_nibbles(as_bytes(weights), 9, 1100)
    x = activations(5, 1100)
    x[1], x[2, :BLOCK] = 0, 1e-38
    x[3, 700], x[4, 1099] = np.inf, np.nan
    for out in (by_coarse(kernels, x, coarse), by_nibbles(kernels, x, nibbles)):
        assert (out[1] == 0).all()
        assert np.isfinite(out[:3]).all()
        assert np.isnan(out[3:]).all()
    assert same_bits(by_coarse(kernels, x, coarse)[:3], coarse_product(x[:3], coarse))


@pytest.mark.parametrize("rows", [1, 40])
def test_bias_then_accumulation(isa: str, rows: int) -> None:
    kernels, weights = Kernels(2), gaussian(9, 83)
    coarse, nibbles = coarse_of(weights), kernels.quantize_nibbles(as_bytes(weights), 9, 83)
    x, rng = activations(rows, 83), np.random.default_rng(5)
    bias, before = rng.standard_normal(9, np.float32), rng.standard_normal((rows, 9), np.float32)
    for expected, multiply, matrix in (
        (coarse_product(x, coarse), kernels.matmul_coarse, coarse),
        (nibble_product(x, nibbles), kernels.matmul_nibbles, nibbles),
    ):
        for given_bias in (bias, None):
            biased = expected if given_bias is None else expected + given_bias
            for accumulate in (False, True):
                out = before.copy()
                multiply(x, matrix, out, bias=given_bias, accumulate=accumulate)  # type: ignore[operator]
                assert same_bits(out, before + biased if accumulate else biased)


@pytest.mark.parametrize("rows", [3, 70])
def test_rows_at_any_distance(isa: str, rows: int) -> None:
    kernels, coarse = Kernels(2), coarse_of(gaussian(9, 83))
    x = activations(rows, 83)
    wide_x, wide_out = np.full((rows, 100), np.nan, np.float32), np.full((rows, 30), 5, np.float32)
    wide_x[:, 7:90] = x
    kernels.matmul_coarse(wide_x[:, 7:90], coarse, wide_out[:, 3:12])
    assert same_bits(wide_out[:, 3:12].copy(), coarse_product(x, coarse))
    assert (wide_out[:, :3] == 5).all()
    assert (wide_out[:, 12:] == 5).all()


def test_raw_rows_in_packed_chunks(isa: str) -> None:
    """Their coarse bits say sign and class all the same."""
    weights = gaussian(20, 321)
    weights[[0, 5, 19]] = np.random.default_rng(0).integers(0, 0x7F80, (3, 321))
    coarse, x = coarse_of(weights, 8), activations(4, 321)
    assert same_bits(by_coarse(Kernels(1), x, coarse), coarse_product(x, coarse))


def test_bytes_of_any_kind(isa: str) -> None:
    """Padding of rows is multiplied with zeros, whatever it holds."""
    coarse, x = coarse_of(gaussian(9, 70)), activations(3, 70)
    noise = np.random.default_rng(3).integers(0, 256, coarse.chunks.nbytes, np.uint8)
    broken = CoarseRows(elsewhere(coarse.chunks, noise), coarse.magnitudes, coarse.scales)
    integers = coarse_integers(broken)
    integers[:, 70:] = 0
    assert same_bits(by_coarse(Kernels(1), x, broken), product(x, integers, None) * coarse.scales)


def at_the_end_of_a_page(source: U8) -> U8:
    pages = -(-source.size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    forbid(memory.ctypes.data + pages, mmap.PAGESIZE)
    memory[pages - source.size : pages] = source
    return memory[pages - source.size : pages]


@pytest.mark.parametrize("cols", [64, 83, 700])
def test_weights_up_to_the_last_byte_of_a_page(isa: str, cols: int) -> None:
    """Whoever reads past the weights dies here."""
    kernels, weights = Kernels(1), gaussian(9, cols)
    coarse, nibbles = coarse_of(weights), kernels.quantize_nibbles(at_the_end_of_a_page(as_bytes(weights)), 9, cols)
    chunks = elsewhere(coarse.chunks, at_the_end_of_a_page(coarse.chunks.arrays[0]))
    coarse = CoarseRows(chunks, coarse.magnitudes, coarse.scales)
    nibbles = replace(nibbles, data=at_the_end_of_a_page(nibbles.data))
    kernels.coarse_levels(chunks)
    for rows in (1, 3, 20):
        x = activations(rows, cols)
        assert same_bits(by_coarse(kernels, x, coarse), coarse_product(x, coarse))
        assert same_bits(by_nibbles(kernels, x, nibbles), nibble_product(x, nibbles))


def test_chunks_in_several_arrays(isa: str) -> None:
    whole = coarse_of(gaussian(21, 201), 8)
    cut = 2 * codec.coarse_bytes(8, 201)
    [array] = whole.chunks.arrays
    chunks = elsewhere(whole.chunks, array[:cut].copy(), array[cut:].copy())
    parts, x = CoarseRows(chunks, whole.magnitudes, whole.scales), activations(3, 201)
    assert same_bits(by_coarse(Kernels(2), x, parts), by_coarse(Kernels(2), x, whole))
    with pytest.raises(ValueError, match="coarse is too short"):  # the first ends within a chunk
        elsewhere(whole.chunks, array[: cut - 64].copy(), array[cut:].copy())


def test_chunks_live_as_long_as_rows_of_them(isa: str) -> None:
    weights, x = gaussian(21, 201), activations(3, 201)
    coarse = coarse_of(weights, 8)
    [array] = map(weakref.ref, coarse.chunks.arrays)
    gc.collect()
    assert same_bits(by_coarse(Kernels(1), x, coarse), coarse_product(x, coarse_of(weights, 8)))
    del coarse
    assert array() is None


def test_counts_of_classes(isa: str) -> None:
    packed = pack(gaussian(21, 201), 8)
    counts, units = np.empty((21, 4), np.int32), np.empty(21, np.uint8)
    _core.count_classes(_core.ThreadPool(2, 64 << 10), chunks_of(packed), counts, units)
    expected_units, classes, _ = coarse_fields(coarse_of(gaussian(21, 201), 8))
    assert (units == expected_units).all()
    assert (counts == [[np.count_nonzero(row[:201] == c) for c in range(4)] for row in classes]).all()


def test_likely_levels_of_normal_rows(isa: str) -> None:
    """Near the mean magnitudes of each class, and with nearly as small an error as those have."""
    weights = gaussian(64, 4096)
    packed, values = pack(weights, 16), widened(weights).astype(np.float64)
    magnitudes, scales = Kernels(2).coarse_levels(chunks_of(packed))
    assert magnitudes.max() == MOST_LEVEL
    coarse = CoarseRows(chunks_of(packed), magnitudes, scales)
    units, classes, _ = coarse_fields(coarse)
    own = coarse_integers(coarse)[:, :4096] * scales[:, None].astype(np.float64)
    best = np.empty_like(values)
    for row, (value, of_class) in enumerate(zip(values, classes, strict=True)):
        for c in range(4):
            best[row, of_class == c] = np.abs(value[of_class == c]).mean()
    error, least = ((np.sum((w - values) ** 2, axis=1)) for w in (own, np.copysign(best, values)))
    assert (error < 1.06 * least).all()
    assert (scales < 2.0 ** (units - 127.0)).all()


def test_likely_levels_of_unlikely_counts() -> None:
    counts = np.array([[0, 0, 0, 0], [7, 0, 0, 0], [0, 0, 0, 9], [0, 5, 0, 0], [1, 0, 0, 1]], np.int32)
    for unit in (0, 127, 255):
        magnitudes, scales = likely_levels(counts, np.full(5, unit, np.uint8))
        assert magnitudes.dtype == np.uint8
        assert (magnitudes <= MOST_LEVEL).all()
        assert (np.diff(magnitudes.astype(int), axis=1) > 0).all()
        assert np.isfinite(scales).all()
    magnitudes, scales = likely_levels(counts[:0], np.zeros(0, np.uint8))
    assert magnitudes.shape == (0, 4)
    assert scales.shape == (0,)


def test_error_of_int8_activations(isa: str) -> None:
    """Within half a step a term, beside the product of the same levels in float64."""
    kernels, cols = Kernels(2), 1700
    coarse = coarse_of(gaussian(30, cols), 16)
    x = activations(12, cols)
    levels = coarse_integers(coarse)[:, :cols] * coarse.scales[:, None].astype(np.float64)
    step = np.repeat(quantized(x)[1], BLOCK, axis=1)[:, :cols].astype(np.float64)
    bound = (step / 2) @ np.abs(levels).T + 1e-5 * np.abs(x.astype(np.float64)) @ np.abs(levels).T
    assert (np.abs(by_coarse(kernels, x, coarse) - x.astype(np.float64) @ levels.T) <= bound).all()


def test_nibbles_of_normal_weights(isa: str) -> None:
    """16 levels that suit a normal distribution leave 0.0095 of its variance."""
    weights = gaussian(40, 4096)
    values = widened(weights).astype(np.float64)
    nibbles = Kernels(2).quantize_nibbles(as_bytes(weights), 40, 4096)
    integers = nibble_integers(nibbles).reshape(40, -1, BLOCK)
    own = (integers * nibbles.scales.reshape(40, -1, 1).astype(np.float64)).reshape(40, 4096)
    assert np.sum((own - values) ** 2) < 0.0105 * np.sum(values**2)
    # Each weight has the nearest level.
    in_levels = values.reshape(40, -1, BLOCK, 1) / nibbles.scales.reshape(40, -1, 1, 1)
    nearest = np.abs(in_levels - NIBBLES).min(3)
    assert (np.abs(in_levels[..., 0] - integers) <= nearest + 1e-4).all()


def test_nibbles_of_zeros_and_of_weights_that_are_not_finite(isa: str) -> None:
    weights = gaussian(3, 600)
    weights[1], weights[2, 5], weights[2, 6] = 0, 0x7F80, 0xFFC0
    kernels = Kernels(1)
    nibbles = kernels.quantize_nibbles(as_bytes(weights), 3, 600)
    assert np.isfinite(nibbles.scales).all()
    out = by_nibbles(kernels, activations(2, 600), nibbles)
    assert (out[:, 1] == 0).all()
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 64), (7, 513), (64, 4096)])
def test_size_of_nibbles(rows: int, cols: int) -> None:
    nibbles = Kernels(1).quantize_nibbles(as_bytes(gaussian(rows, cols)), rows, cols)
    assert nibble_bytes(rows, cols) == nibbles.data.nbytes + nibbles.scales.nbytes
    assert math.isclose(nibble_bytes(4096, 4096) * 8 / 4096**2, 4.0625)


def test_shapes_that_do_not_match() -> None:
    kernels, coarse = Kernels(1), coarse_of(gaussian(4, 64))
    x, out = np.zeros((1, 64), np.float32), np.zeros((1, 4), np.float32)
    nibbles = kernels.quantize_nibbles(as_bytes(gaussian(4, 64)), 4, 64)
    with pytest.raises(ValueError, match="coarse weights are 4 x 64, not 5 x 64"):
        kernels.matmul_coarse(x, coarse, np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="4-bit weights are 4 x 64, not 4 x 63"):
        kernels.matmul_nibbles(x[:, :63], nibbles, out)
    with pytest.raises(ValueError, match="coarse is too short"):
        elsewhere(coarse.chunks, coarse.chunks.arrays[0][:-1])
    with pytest.raises(ValueError, match="magnitudes must be contiguous, four for each row"):
        CoarseRows(coarse.chunks, np.zeros((4, 3), np.uint8), coarse.scales)
    with pytest.raises(ValueError, match="length of scales is 3, expected 4"):
        CoarseRows(coarse.chunks, coarse.magnitudes, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="bytes of nibbles is 127, expected 128"):
        kernels.matmul_nibbles(x, replace(nibbles, data=nibbles.data[:-1]), out)
    with pytest.raises(ValueError, match="rows of out is 2, expected 1"):
        kernels.matmul_nibbles(x, nibbles, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="length of bias is 3, expected 4"):
        kernels.matmul_coarse(x, coarse, out, bias=np.zeros(3, np.float32))
    quantized = np.zeros(_core.quantized_bytes(1, 64) - 64, np.uint8)
    with pytest.raises(ValueError, match="quantized is too small"):
        _core.matmul_coarse(_core.ThreadPool(1, 64 << 10), x, coarse, out, quantized)
    counts, units = np.zeros((5, 4), np.int32), np.zeros(5, np.uint8)
    with pytest.raises(ValueError, match="rows of counts is 5, expected 4"):
        _core.count_classes(_core.ThreadPool(1, 64 << 10), coarse.chunks, counts, units)
    with pytest.raises(ValueError, match="bytes of weights is 511, expected 512"):
        kernels.quantize_nibbles(as_bytes(gaussian(4, 64))[:-1], 4, 64)
