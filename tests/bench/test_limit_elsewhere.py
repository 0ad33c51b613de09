"""bench/limit.py where there are no control groups."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import control_group
import limit
import pytest
from control_group import new_group

from penstock.errors import UsageError

REMEDY = "Run the command without bench/limit.py."


def problem(platform: str) -> str:
    return f"Caps on memory and reads need Linux's control groups; this is {platform}."


def test_a_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_group, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(UsageError) as caught:
        new_group(tmp_path)
    assert (caught.value.problem, caught.value.remedy) == (problem("darwin"), REMEDY)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows has neither SIGHUP nor disks by number."""
    handled: list[int] = []
    windows_signals = SimpleNamespace(SIGTERM=15, signal=lambda number, _: handled.append(number))
    monkeypatch.setattr(control_group, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(limit, "signal", windows_signals)
    monkeypatch.setattr(limit, "os", SimpleNamespace())
    monkeypatch.setattr(sys, "argv", ["limit.py", "--read", "1MB", "--", "sleep"])
    assert limit.main() == 2
    assert capsys.readouterr().err == f"error: {problem('win32')}\n{REMEDY}\n"
    assert handled == [15]
