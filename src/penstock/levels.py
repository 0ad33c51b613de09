"""Weights of a few levels, for guessing: what products of drafting are made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    U8 = npt.NDArray[np.uint8]
    F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CoarseRows:
    rows: int
    cols: int
    rows_per_chunk: int
    coarse: U8
    magnitudes: U8
    scales: F32


@dataclass(frozen=True, slots=True, eq=False)
class NibbleRows:
    rows: int
    cols: int
    data: U8


def nibble_bytes(rows: int, cols: int) -> int:
    return rows * (-(-cols // 64) * 32 + 20)
