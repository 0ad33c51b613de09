"""A server for the clients: of the model in PENSTOCK_CLIENTS_MODEL, else of a trained one that calls functions and that
`./scripts/test --trained` has fetched, else of the demo model with a place for tools in its chat template."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.served import Served
from helpers.tools_model import with_tools
from penstock.openai_api.tool_formats import tool_format
from penstock.text.tokenizer import Tokenizer

TRAINED = Path(os.environ.get("PENSTOCK_TRAINED", "build/trained"))


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model to serve."""
    if named := os.environ.get("PENSTOCK_CLIENTS_MODEL"):
        return Path(named)
    found = [TRAINED / name for name in ("qwen05", "qwen15") if (TRAINED / name).exists()]
    return found[0] if found else with_tools(tmp_path_factory.mktemp("clients") / "demo")


@pytest.fixture(scope="session")
def served(chosen: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "penstock", "serve", str(chosen), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        yield Served(words[0], f"{words[-1]}/v1")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def calls(chosen: Path) -> None:
    """For tests of tools: skips them where the model knows none."""
    tokenizer = Tokenizer.open(chosen)
    has_template = tokenizer is not None and tokenizer.has_chat_template
    if not has_template or tool_format(tokenizer.chat_template(for_tools=True).source) is None:
        pytest.skip(f"{chosen.name} has no place for tools in its chat template")
