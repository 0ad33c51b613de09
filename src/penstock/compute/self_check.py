"""A digest of what kernels compute from fixed inputs: alike wherever they keep to the numerics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, Kernels

ROWS, COLUMNS = 37, 531
"""No multiples of anything that kernels work in."""


def kernel_digest(kernels: Kernels) -> str:
    """16 hexadecimal digits of a product, angles, norms, gates and sums of fixed numbers."""
    digest = xxhash.xxh3_64()
    x = _numbers(3, COLUMNS)
    weights = (_numbers(ROWS, COLUMNS).view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    products = np.zeros((3, ROWS), np.float32)
    kernels.matmul(x, weights.reshape(-1), "BF16", products)
    out = np.empty_like(x)
    kernels.rms_norm(x, x[0], 1e-5, out)
    gates = np.empty_like(x)
    for activation in ("silu", "gelu_tanh"):
        kernels.gated(x, out, activation, gates)
        digest.update(gates.tobytes())
    angles = kernels.rope_table(np.array([1, 77, 131_071]), np.abs(x[1, :64]).copy())
    kernels.scale(x, times=3.0, divisor=7.0, cap=2.0)
    for array in (products, out, *angles, x):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _numbers(rows: int, columns: int) -> F32:
    """float32 [rows, columns] between -1 and 1, by integers alone."""
    mixed = np.arange(1, rows * columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers: F32 = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return numbers.reshape(rows, columns)
