"""Chunks of any writer, sound and spoilt: the same to all instruction sets, and to all that reads packed rows."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.free_kernels import any_matrix, check_matrix
from penstock.compute.kernels import Kernels

KERNELS = Kernels(2)


@pytest.mark.parametrize("seed", range(40))
def test_any_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_matrix(any_matrix(rng), KERNELS, rng)
