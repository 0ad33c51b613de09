"""Where a name of a model leads, and what it is called elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.checkpoints.store import find_model, name_elsewhere


def test_what_another_machine_knows_a_model_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names go with a model, wherever a machine keeps it; a path is the same path there."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "store"))
    assert name_elsewhere(find_model("demo")) == "demo"
    assert name_elsewhere(tmp_path / "store" / "models" / "owner" / "name") == "owner/name"
    snapshot = tmp_path / "hub" / "models--owner--a-name" / "snapshots" / "0123abc"
    assert name_elsewhere(snapshot) == "owner/a-name"
    assert name_elsewhere(tmp_path / "packed") == str(tmp_path / "packed")
    monkeypatch.chdir(tmp_path)
    assert name_elsewhere(Path("packed")) == str(tmp_path / "packed")
