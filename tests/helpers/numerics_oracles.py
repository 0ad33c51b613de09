"""The numerics contract, written out in NumPy: float32 steps, each rounded once, in the order that the kernels fix.

Nothing here is fast, and nothing uses a transcendental function of NumPy or libm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock import _core

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def f32(values: npt.ArrayLike) -> F32:
    return np.asarray(values, np.float32)


def i32(values: npt.ArrayLike) -> npt.NDArray[np.int32]:
    return np.asarray(values, np.int32)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run with the named instruction set active, then go back."""
    before = _core.isa()
    _core.set_isa(name)
    try:
        yield
    finally:
        _core.set_isa(before)


def fma32(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """a * b + c with one rounding: exact product in float64, sum rounded to odd, then to float32."""
    with np.errstate(all="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = np.asarray(product + addend)
        part = total - product
        error = (product - (total - part)) + (addend - part)
        inexact_even = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
        odd = np.where(inexact_even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return odd.astype(np.float32)


def tree(lanes: F32) -> F32:
    """Sum of 16 lanes (last axis): lanes j and j + 8, then j + 4, j + 2, j + 1."""
    with np.errstate(all="ignore"):
        for width in (8, 4, 2, 1):
            lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        return lanes[..., 0]


def dot(x: F32, w: F32) -> F32:
    """Dot products over the last axis, which broadcast over the others."""
    x, w = np.broadcast_arrays(x, w)
    lanes = np.zeros((*x.shape[:-1], 16), np.float32)
    for k in range(x.shape[-1]):
        lanes[..., k % 16] = fma32(x[..., k], w[..., k], lanes[..., k % 16])
    return tree(lanes)


def exp32(x: npt.ArrayLike) -> F32:
    """exp, step by step as in cpp/kernels/generic/exp.h."""
    f = np.float32
    with np.errstate(all="ignore"):
        bounded = np.clip(np.asarray(x, f), f(-104), f(89))
        k = np.nan_to_num(np.rint(bounded * f(float.fromhex("0x1.715476p+0"))))
        r = fma32(-k, float.fromhex("0x1.62e43p-1"), bounded)
        r = fma32(-k, float.fromhex("-0x1.05c61p-29"), r)
        p = f(1) / f(5040)
        for factorial in (720, 120, 24, 6, 2, 1, 1):
            p = fma32(r, p, f(1) / f(factorial))
        half = np.rint(k * f(0.5))
        return f32(np.ldexp(np.ldexp(p, half.astype(int)), (k - half).astype(int)))


def tanh32(x: npt.ArrayLike) -> F32:
    """tanh, step by step as in cpp/kernels/generic/tanh.h."""
    f = np.float32
    with np.errstate(all="ignore"):
        x = np.asarray(x, f)
        square = x * x
        p = f(-5.70498872745e-3)
        for coefficient in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
            p = fma32(square, p, f(coefficient))
        near = fma32(p * square, x, x)
        size = np.abs(x)
        beyond = f(1) - f(2) / (f(1) + exp32(size + size))
        return f32(np.where(size < f(0.625), near, np.where(x < 0, -beyond, beyond)))


def capped(x: F32, cap: float) -> F32:
    """cap * tanh(x / cap); x where cap is 0."""
    with np.errstate(all="ignore"):
        return f32(tanh32(x / np.float32(cap)) * np.float32(cap)) if cap else x


def gated(gate: F32, up: F32, activation: str) -> F32:
    """activation(gate) * up, of "silu" or "gelu_tanh"."""
    with np.errstate(all="ignore"):
        z = gate * fma32(gate * gate, np.float32(0.07135482), np.float32(1.5957691))
        return f32(gate / (1 + exp32(-(gate if activation == "silu" else z))) * up)


def attend(q: F32, keys: F32, values: F32, scale: float, window: int = 0, softcap: float = 0) -> F32:
    """Attention of one query vector q[d] over its path: keys, values [n, d]; of a window its last positions only."""
    first = max(0, len(keys) - window) if window else 0
    with np.errstate(all="ignore"):
        scores = capped(dot(q, keys) * np.float32(scale), softcap)[first:]
        weights = exp32(scores - scores.max())
        lanes = np.zeros(16, np.float32)
        out = np.zeros_like(q)
        for position, weight in enumerate(weights, first):
            lanes[position % 16] += weight
            out = fma32(weight, values[position], out)
        return out / tree(lanes)


def same_bits(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Equal bit by bit, all NaNs being one class."""
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[actual.itemsize]
    bits = np.ascontiguousarray(actual).view(unsigned) == np.ascontiguousarray(expected).view(unsigned)
    return actual.shape == expected.shape and bool((bits | (np.isnan(actual) & np.isnan(expected))).all())


def to_bf16(x: F32) -> F32:
    """x rounded to BF16, ties to even, as float32."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), x, rounded)
