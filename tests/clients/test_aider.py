"""aider (https://aider.chat), which edits files: it has an environment of its own, since it pins all that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.served import Served

AIDER = Path(sys.executable).parent.parent / "aider" / "bin" / "aider"

pytestmark = pytest.mark.skipif(not AIDER.exists(), reason="no aider, which ./scripts/test --clients installs")

CODE = "def add(a, b):\n    return a + b\n"
BETTER = 'def add(a, b):\n    """The sum."""\n    return a + b\n'
# What it is to say: no model as small as the demo writes an edit, and the server can have it say one all the same.
SAYS = {"extra_body": {"structured_outputs": {"choice": [f"code.py\n```\n{BETTER}```"]}}}


@pytest.mark.parametrize(("stream", "dry"), [("--stream", True), ("--no-stream", False)])
def test_an_edit(served: Served, tmp_path: Path, stream: str, dry: bool) -> None:
    (tmp_path / "code.py").write_text(CODE)
    name = f"openai/{served.model}"
    extra = {"max_tokens": 200, "temperature": 0, **SAYS}
    (tmp_path / "settings.yml").write_text(json.dumps([{"name": name, "edit_format": "whole", "extra_params": extra}]))
    command = [
        str(AIDER), "--model", name, "--openai-api-base", served.url, "--openai-api-key", "none",
        "--model-settings-file", "settings.yml", "--message", "Add a docstring.", "--yes-always", stream,
        "--no-git", "--map-tokens", "0", "--no-check-update", "--no-analytics", "--no-show-model-warnings",
        "--no-show-release-notes", "--no-auto-lint", "--no-suggest-shell-commands", "--no-pretty",
        *(["--dry-run"] if dry else []), "code.py",
    ]  # fmt: skip
    environment = os.environ | {"HOME": str(tmp_path), "TERM": "dumb", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert ("Did not apply edit to code.py (--dry-run)" if dry else "Applied edit to code.py") in told, told
    assert (tmp_path / "code.py").read_text() == (CODE if dry else BETTER)
