"""Corrections of low rank, fitted to what a matrix really multiplies.

The coarse tier's errors E = W - Q make errors E x of a product. Of all matrices of rank r, U U' E with the first r left
singular vectors U of E X brings these closest to nothing over the activations X (reduced-rank regression: Izenman,
1975). It has all columns of E in it, so it is good for activations that X did not have, too. Pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock.compute.corrections import Correction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.compute.kernels import F32, I8

MOST_LEVEL = 127


@dataclass(frozen=True, slots=True)
class Basis:
    """Directions of a product's errors, the strongest first.

    vectors: float32 [rows, rank], orthonormal; gains: float32 [rank] (compute/corrections.py).
    """

    vectors: F32
    gains: F32


def error_basis(errors: F32, exact: F32, rank: int) -> Basis:
    """Of errors [n, rows] of a product that is `exact` [n, rows]; at most `rank` directions, none without errors."""
    errors = np.nan_to_num(errors, posinf=0, neginf=0)
    squares, vectors = np.linalg.eigh(errors @ errors.T)  # n is small beside the rows
    squares, vectors = squares[::-1][:rank], vectors[:, ::-1][:, :rank]
    there = squares > max(float(squares[0]), 1e-30) * 1e-6
    squares, vectors = squares[there], vectors[:, there]
    whole = max(float(np.square(exact).sum()), 1e-30)
    return Basis(errors.T @ (vectors / np.sqrt(squares)), (squares / whole).astype(np.float32))


def quantized(basis: Basis, inward: F32) -> Correction:
    """The correction U (U' E) in 8 bits; `inward`: U' E, [rank, cols]."""
    rows, row_scales = _levels(np.ascontiguousarray(basis.vectors.T))
    cols, col_scales = _levels(inward)
    return Correction(cols, rows, row_scales * col_scales, basis.gains)


def _levels(vectors: F32) -> tuple[I8, F32]:
    """Each vector as int8, with what 1 stands for."""
    scales = np.maximum(np.abs(vectors).max(axis=1), 1e-30) / MOST_LEVEL
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def best(corrections: Mapping[str, Correction], nbytes: int) -> dict[str, Correction]:
    """Those components that bring most for their bytes, as far as `nbytes` go."""
    components = sorted(
        (-float(gain) / correction.component_nbytes, name, correction.component_nbytes)
        for name, correction in corrections.items()
        for gain in correction.gains
    )
    ranks = dict.fromkeys(corrections, 0)
    for _, name, size in components:
        if size > nbytes:
            break
        nbytes -= size
        ranks[name] += 1
    return {name: corrections[name].first(rank) for name, rank in ranks.items() if rank}
