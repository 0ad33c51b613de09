"""Indexed rows: weights in memory, about 12.3 bits each, in the form that is quickest to multiply with.

One row waits for plain BF16 weights to come from memory, and longer for packed ones to be unpacked. This form lies
between them in size, and is for models that fit in memory whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock import _core

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    U8 = npt.NDArray[np.uint8]

EXCEPTION_SHARE = 0.03
"""Of the bytes of rows: room for groups that their row's table of exponents leaves out. Those of `penstock synth` take
about 0.01."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexedRows:
    """What Kernels.index wrote, in memory: a matrix [rows, cols]."""

    rows: int
    cols: int
    data: U8


def likely_bytes(rows: int, cols: int) -> int:
    """What so many weights will take."""
    return int(rows * _core.indexed_row_bytes(cols) * (1 + EXCEPTION_SHARE))
