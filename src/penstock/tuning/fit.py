"""Corrections of low rank, fitted to what a matrix really multiplies.

The coarse tier's errors E = W - Q make errors E x of a product. Of all matrices of rank r, U U' E with the first r left
singular vectors U of E X brings these closest to nothing over the activations X (reduced-rank regression: Izenman,
1975). It has all columns of E in it, so it is good for activations that X did not have, too. Pure functions of arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.corrections import Correction

if TYPE_CHECKING:
    from penstock.compute.kernels import F32, I8

MOST_LEVEL = 127


def error_basis(errors: F32, rank: int) -> F32:
    """Directions of a product's errors [n, rows], the strongest first: orthonormal, float32 [rows, `rank` at most].
    Without errors there are none."""
    errors = np.nan_to_num(errors, posinf=0, neginf=0)
    squares, vectors = np.linalg.eigh(errors @ errors.T)  # n is small beside the rows
    squares, vectors = squares[::-1][:rank], vectors[:, ::-1][:, :rank]
    there = squares > max(float(squares[0]), 1e-30) * 1e-6
    squares, vectors = squares[there], vectors[:, there]
    basis: F32 = errors.T @ (vectors / np.sqrt(squares))
    return basis


def quantized(vectors: F32, inward: F32) -> Correction:
    """The correction U (U' E) in 8 bits. `vectors`: U, [rows, rank]; `inward`: U' E, [rank, cols]."""
    rows, row_scales = _levels(np.ascontiguousarray(vectors.T))
    cols, col_scales = _levels(inward)
    return Correction(cols, rows, row_scales * col_scales)


def _levels(vectors: F32) -> tuple[I8, F32]:
    """Each vector as int8, with what 1 stands for."""
    scales = np.maximum(np.abs(vectors).max(axis=1), 1e-30) / MOST_LEVEL
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)
