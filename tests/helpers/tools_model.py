"""The demo model with a place for tools in its chat template: it never saw any, and is made to call all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.cases import DEMO

# Calls are written as Hermes and Qwen have them; of the tools the prompt has no more than their names.
BEFORE = "{% if tools %}<tool_call>{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"


def with_tools(directory: Path) -> Path:
    """A copy of it in a directory that is new."""
    shutil.copytree(DEMO, directory)
    template = (DEMO / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").write_text(BEFORE + template)
    return directory
