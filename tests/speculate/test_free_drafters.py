from __future__ import annotations

import sys
from pathlib import Path

import free_drafters
import pytest


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_tokens_a_pass_of_every_drafter(
    temperature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("def area(width, height):\n    return width * height\n" * 8)
    options = ["--prompts", "2", "--prompt-tokens", "40", "--tokens", "12", "--nodes", "1", "6"]
    monkeypatch.setattr(sys, "argv", ["free_drafters.py", str(text), *options, "--temperature", temperature])
    free_drafters.main()  # where it checks that guesses changed no token
    lines = capsys.readouterr().out.splitlines()
    names = ["lookup", "recycling", "recycling, kept", "both", "both, kept"]
    assert [line[10:27].strip() for line in lines] == 2 * names
    rates = [float(line.split(" tokens a pass")[0].split()[-1]) for line in lines]
    assert all(1 <= rate <= 7 for rate in rates)
    assert rates[5] >= rates[0] > 1
