"""Packed files that break the format under checksums that hold: an error of Penstock's or a model, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.free_models import FreeModel, write_model
from helpers.hostile_packed import attack, spoil
from helpers.thorough import quick
from penstock.compute.kernels import Kernels

KERNELS = Kernels(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FreeModel:
    return write_model(tmp_path_factory.mktemp("model"), 2)


@pytest.mark.parametrize("seed", quick([0, *range(4, 8), *range(10, 22)], range(24)))
def test_any_change(model: FreeModel, tmp_path: Path, seed: int) -> None:
    spoilt, _ = spoil(model, tmp_path, seed)
    attack(spoilt, KERNELS, tmp_path)
