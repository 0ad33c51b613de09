from __future__ import annotations

from pathlib import Path

import pytest

from helpers.text_results import text_result
from penstock import PenstockError
from penstock.benchmarks.acceptance_plot import draw_acceptance
from penstock.errors import UsageError


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_panel_for_each_temperature_and_a_line_for_each_drafter(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    draw_acceptance(text_result(), path)
    if suffix == "svg":
        drawn = path.read_text(encoding="utf-8")
        for words in ("temperature 0", "temperature 1", "lookup", "coarse, a chain, as many steps", "tokens a pass"):
            assert f"<!-- {words} -->" in drawn
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_one_temperature(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_acceptance(text_result(temperatures=(0.0,)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_errors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="a plot is a"):
        draw_acceptance(text_result(), tmp_path / "plot.gif")
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(PenstockError, match="cannot be written"):
        draw_acceptance(text_result(), tmp_path / "plot.png")
