from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock import pressure
from penstock.pressure import CALM_SECONDS, MIB, Relief, Sample, take_sample

CALM = Sample(available=4000 * MIB, reserve=200 * MIB, group_free=None, swapped=0, stalled_seconds=0.0)
RESIDENT = 1600 * MIB
STEP = RESIDENT // 16


class System:
    """A system whose state and clock a test sets."""

    def __init__(self) -> None:
        self.state, self.now = CALM, 0.0

    def relief(self) -> Relief:
        return Relief(lambda: self.state, lambda: self.now)

    def later(self, relief: Relief, seconds: float = 1.0, resident: int = RESIDENT, **changes: object) -> bool:
        self.now += seconds
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        return relief.check(resident)


@pytest.fixture
def system() -> Iterator[System]:
    return System()


def test_calm_limits_nothing(system: System) -> None:
    relief = system.relief()
    for _ in range(5):
        assert not system.later(relief)
    assert relief.limit is None


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"available": 50 * MIB}, 150 * MIB),
        ({"available": 190 * MIB}, STEP),
        ({"swapped": 300 * MIB}, 300 * MIB),
        ({"group_free": 0}, STEP),
        ({"stalled_seconds": 0.2, "available": 300 * MIB}, 300 * MIB),
    ],
)
def test_what_is_missing_is_given_back(system: System, changes: dict[str, object], missing: int) -> None:
    relief = system.relief()
    assert system.later(relief, **changes)
    assert relief.limit == RESIDENT - missing


@pytest.mark.parametrize(
    "changes",
    [
        {"stalled_seconds": 0.9},  # others stall, within limits of their own: there is memory enough
        {"stalled_seconds": 0.05, "available": 300 * MIB},
        {"group_free": 40 * MIB},
        {"available": 201 * MIB},
    ],
)
def test_what_is_no_pressure(system: System, changes: dict[str, object]) -> None:
    relief = system.relief()
    assert not system.later(relief, **changes)
    assert relief.limit is None


def test_pages_swapped_out_long_ago_are_no_sign(system: System) -> None:
    system.state = replace(CALM, swapped=900 * MIB)
    relief = system.relief()
    assert not system.later(relief, swapped=900 * MIB)


def test_checks_are_rare(system: System) -> None:
    relief = system.relief()
    assert not system.later(relief, seconds=0.1, available=0)
    assert system.later(relief, seconds=0.5)


def test_it_never_goes_below_nothing(system: System) -> None:
    relief = system.relief()
    assert system.later(relief, resident=10 * MIB, available=0)
    assert relief.limit == 0


def test_memory_comes_back_slowly_after_a_calm_while(system: System) -> None:
    relief = system.relief()
    system.later(relief, available=0, reserve=800 * MIB)
    low = relief.limit
    assert low == RESIDENT - 800 * MIB
    assert not system.later(relief, available=CALM.available, reserve=CALM.reserve, resident=low)
    assert system.later(relief, seconds=CALM_SECONDS, resident=low)
    assert relief.limit is not None
    assert low < relief.limit <= low + STEP
    for _ in range(40):  # the weights fill what they may, until something else bounds them
        system.later(relief, resident=min(RESIDENT, relief.limit or RESIDENT))
    assert relief.limit is None


def test_it_does_not_come_back_while_memory_is_short(system: System) -> None:
    relief = system.relief()
    system.later(relief, available=100 * MIB)
    low = relief.limit
    for _ in range(100):
        assert not system.later(relief, available=300 * MIB, resident=low or 0)
    assert relief.limit == low


def test_this_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = take_sample()
    assert sample.available > 0
    assert 0 < sample.reserve <= 512 * MIB
    path = tmp_path / "memory"
    monkeypatch.setattr(pressure, "PSI_FILE", path)
    assert take_sample().stalled_seconds == 0
    path.write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=7\n")
    assert take_sample().stalled_seconds == 2.5
    path.write_text("nonsense\n")
    assert take_sample().stalled_seconds == 0
