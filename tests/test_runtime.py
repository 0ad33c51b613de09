"""An open model put together."""

from __future__ import annotations

import pytest

from penstock import LLM
from penstock.system import machine
from penstock.weights.weights import Weights


def test_the_process_is_measured_with_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan takes for the process counts norms and biases, which no pass reads again."""
    happened: list[str] = []
    footprint, vectors = machine.footprint, Weights.vectors
    monkeypatch.setattr(machine, "footprint", lambda: happened.append("measured") or footprint())
    monkeypatch.setattr(Weights, "vectors", lambda self: happened.append("loaded") or vectors(self))
    with LLM.open("demo", memory="4GiB", draft="none"):
        assert "measured" in happened[happened.index("loaded") :]
