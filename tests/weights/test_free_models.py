"""Packed files by any writer that keeps to docs/format.md give the bits of the raw model, whatever is done to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.free_models import check_answers, check_copies, check_same, write_model
from helpers.thorough import quick
from penstock.compute.kernels import Kernels

KERNELS = Kernels(1)


@pytest.mark.parametrize("seed", quick((0, 3, 7), range(8)))
def test_any_choice_of_the_format(tmp_path: Path, seed: int) -> None:
    model = write_model(tmp_path, seed)
    check_same(model, KERNELS, seed)
    check_answers(model)
    check_copies(model, tmp_path)
