"""The page on the command line says what the commands say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli import app

TOOL = Path(__file__).parents[2] / "tools" / "cli_reference.py"
COMMANDS = [info.name or info.callback.__name__ for info in app.registered_commands if info.callback]


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOL))


def test_the_page_is_up_to_date(tool: dict[str, Any]) -> None:
    assert tool["PAGE"].read_text() == tool["page"](), "run python tools/cli_reference.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_help_shows_is_on_it(tool: dict[str, Any], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that --help lists, by the command line's own parser."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, [command, "--help"]).output
    section = tool["page"]().split(f"## penstock {command}\n")[1].split("\n## ")[0]
    flags = {word.strip(",") for word in shown.split() if word.startswith("--") and word.strip("-,").isascii()}
    options = {flag for flag in flags if f"{flag} " in shown} - {"--help"}
    assert all(flag in section for flag in options)
    assert all(row.split("|")[2].strip() for row in section.splitlines() if row.startswith("| `")), "without help"
