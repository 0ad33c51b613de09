from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.memory import pressure
from penstock.memory.pressure import CALM_SECONDS, MIB, Relief, Sample, take_sample
from penstock.system import machine
from penstock.system.cgroups import Group

CALM = Sample(4000 * MIB, reserve=200 * MIB, group_free=None, group_reserve=32 * MIB, swapped=0, stalled_seconds=0.0)
RESIDENT, WANTED = 1600 * MIB, 1700 * MIB
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
        return relief.check(resident, WANTED)


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
        ({"group_free": 50 * MIB, "group_reserve": 256 * MIB}, 206 * MIB),
        ({"stalled_seconds": 0.2, "available": 300 * MIB}, 300 * MIB),
        ({"low": True}, STEP),
        ({"low": True, "available": 50 * MIB}, 150 * MIB),
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


def test_what_the_default_ceiling_leaves_is_no_pressure() -> None:
    """0.15 of what was available at first, which may be less than a twentieth of a machine's memory."""
    system = System()
    system.state = replace(CALM, available=1200 * MIB)
    relief = system.relief()
    assert not system.later(relief, available=180 * MIB)
    assert system.later(relief, available=80 * MIB)


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


def test_memory_comes_back_after_a_calm_while_by_half_of_the_room_a_time(system: System) -> None:
    relief = system.relief()
    system.later(relief, available=0)
    low = RESIDENT - 200 * MIB
    assert relief.limit == low
    assert not system.later(relief, available=600 * MIB, resident=low)
    assert system.later(relief, seconds=CALM_SECONDS, resident=low)
    assert relief.limit == low + 100 * MIB
    assert not system.later(relief, resident=low), "the limit runs away from what is in memory"
    assert system.later(relief, resident=low + 100 * MIB)
    assert relief.limit == low + 200 * MIB
    assert system.later(relief, resident=low + 200 * MIB, available=CALM.available)
    assert relief.limit is None


def test_the_group_must_have_room_too(system: System) -> None:
    relief = system.relief()
    system.later(relief, group_free=0)
    low = relief.limit or 0
    assert not system.later(relief, seconds=2 * CALM_SECONDS, group_free=60 * MIB, resident=low)
    assert system.later(relief, group_free=84 * MIB, resident=low)
    assert relief.limit == low + 10 * MIB


def test_it_does_not_come_back_while_memory_is_short(system: System) -> None:
    relief = system.relief()
    system.later(relief, available=100 * MIB)
    low = relief.limit
    for _ in range(100):
        assert not system.later(relief, available=300 * MIB, resident=low or 0)
    assert relief.limit == low


def test_it_does_not_come_back_while_the_system_says_that_memory_is_short(system: System) -> None:
    relief = system.relief()
    system.later(relief, low=True)
    for _ in range(20):
        assert system.later(relief, seconds=CALM_SECONDS, resident=relief.limit or 0)
    assert relief.limit is not None
    assert relief.limit < RESIDENT // 2
    assert not system.later(relief, low=False, resident=relief.limit)
    assert system.later(relief, seconds=CALM_SECONDS, resident=relief.limit)


def test_a_group_with_others_in_it_keeps_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    own = machine.anonymous_bytes()
    for others, reserve in ((-5 * MIB, 32), (100 * MIB, 82), (4000 * MIB, 256)):
        groups = [Group(10**12, 0), Group(70 * MIB, own + others)]
        monkeypatch.setattr(pressure, "limited_groups", lambda groups=groups: groups)
        sample = take_sample()
        assert sample.group_free == 70 * MIB
        assert sample.group_reserve == pytest.approx(reserve * MIB, abs=4 * MIB)


def test_this_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = take_sample()
    assert not sample.low
    monkeypatch.setattr(machine, "is_low", lambda: True)
    assert take_sample().low
    assert sample.available > 0
    assert 0 < sample.reserve <= 512 * MIB
    path = tmp_path / "memory"
    monkeypatch.setattr(pressure, "PSI_FILE", path)
    assert take_sample().stalled_seconds == 0
    path.write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=7\n")
    assert take_sample().stalled_seconds == 2.5
    path.write_text("nonsense\n")
    assert take_sample().stalled_seconds == 0
