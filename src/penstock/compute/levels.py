"""Weights of few levels, for drafts: the coarse tier of packed ones by itself, and 4-bit ones.

A draft only proposes tokens, so its weights need not be exact. Each is a level, an integer of at most 63 in magnitude,
times a scale; its activations are rounded to int8 (cpp/kernels/draft.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from penstock import _core

if TYPE_CHECKING:
    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    F64 = npt.NDArray[np.float64]
    I32 = npt.NDArray[np.int32]
    I64 = npt.NDArray[np.int64]
    U8 = npt.NDArray[np.uint8]

MOST_LEVEL = 63
GROUP = 64
BLOCK = 512
"""Columns that share a scale: of activations in every product, of 4-bit weights too."""

_CLASS_BOUNDS = (0.0, 0.5, 1.0, 2.0, math.inf)
_ROWS_AT_ONCE, _STRIDE = 1 << 14, 8


CoarseChunks = _core.CoarseChunks
"""The coarse tier of a packed matrix, in memory; arrays that cannot be that are a ValueError."""

CoarseRows = _core.CoarseRows
"""A matrix by its coarse tier alone, and what the classes stand for: magnitudes of at most MOST_LEVEL, and scales."""


@dataclass(frozen=True, slots=True, eq=False)
class NibbleRows:
    """What Kernels.quantize_nibbles wrote: 4-bit weights, a scale for each BLOCK of columns of a row.

    data: uint8 [rows * groups * 32]; scales: float32 [rows * blocks].
    """

    rows: int
    cols: int
    data: U8
    scales: F32


def nibble_bytes(rows: int, cols: int) -> int:
    """Memory that NibbleRows of this shape take, scales included."""
    return rows * (-(-cols // GROUP) * GROUP // 2 + -(-cols // BLOCK) * 4)


def likely_levels(counts: I32, units: U8) -> tuple[U8, F32]:
    """Magnitudes and scales (see CoarseRows) from how many weights of each row are in each class, int32 [rows, 4].

    units: uint8 [rows], the unit byte S of each row: classes part at 1/2, 1 and 2 times 2^(S - 127).
    A row counts as a sample of the normal distribution, of mean zero, that gives these counts the greatest likelihood;
    a class stands for the mean magnitude of that distribution within its bounds.
    """
    _, magnitudes, scales = _normal_levels()
    choices = [_likeliest(counts[start : start + _ROWS_AT_ONCE]) for start in range(0, len(counts), _ROWS_AT_ONCE)]
    choice = np.concatenate(choices) if choices else np.zeros(0, np.int64)
    most = float(np.finfo(np.float32).max)
    scale = np.minimum(np.ldexp(scales[choice], units.astype(np.int32) - 127), most)
    return magnitudes[choice], scale.astype(np.float32)


def _likeliest(counts: I32) -> I64:
    """The index of the likeliest standard deviation of each row. The likelihood has one peak (its logarithm is concave
    in that of the deviation), so some deviations tell between which ones it is."""
    chances, counted = _normal_levels()[0], counts.astype(np.float32)
    rough = np.argmax(counted @ chances[:, ::_STRIDE], axis=1) * _STRIDE
    choice = np.empty(len(counts), np.int64)
    for middle in np.unique(rough).tolist():
        rows, first = rough == middle, max(0, middle - _STRIDE + 1)
        choice[rows] = first + np.argmax(counted[rows] @ chances[:, first : middle + _STRIDE], axis=1)
    return choice


@cache
def _normal_levels() -> tuple[F32, U8, F64]:
    """For 192 standard deviations, 1/8 to 8 units: logs of the classes' chances [4, 192], magnitudes, scales."""
    deviations = np.geomspace(1 / 8, 8, 192)
    below = np.array([[math.erf(bound / d / math.sqrt(2)) for bound in _CLASS_BOUNDS] for d in deviations])
    density = np.array([[math.exp(-((bound / d) ** 2) / 2) for bound in _CLASS_BOUNDS] for d in deviations])
    chances = np.maximum(np.diff(below), 1e-30)
    means = deviations[:, None] * math.sqrt(2 / math.pi) * -np.diff(density) / chances
    means = np.clip(means, _CLASS_BOUNDS[:4], [*_CLASS_BOUNDS[1:4], 64.0])  # where a class has next to no chance
    scales = means[:, 3] / MOST_LEVEL
    magnitudes = np.rint(means / scales[:, None]).astype(np.uint8)
    return np.log(chances).T.astype(np.float32), magnitudes, scales
