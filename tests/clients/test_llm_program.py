"""The program `llm` (https://llm.datasette.io), with the server as one of its extra OpenAI models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.served import Served

pytest.importorskip("llm")

Llm = Callable[..., str]


@pytest.fixture
def llm(served: Served, tmp_path: Path) -> Llm:
    """Runs it with some arguments and returns what it prints."""
    entry = {
        "model_id": "penstock",
        "model_name": served.model,
        "api_base": served.url,
        "api_key_name": "penstock",
        "supports_schema": True,
        "supports_tools": True,
    }
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"penstock": "none"}))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "penstock", "-o", "temperature", "0", "-o", "max_tokens", "80"]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_prompt(llm: Llm) -> None:
    streamed = llm("Say hello.")
    assert streamed.strip()
    assert llm("Say hello.", "--no-stream").strip() == streamed.strip()


def test_a_schema(llm: Llm) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["label", "stars"],
        "additionalProperties": False,
    }
    for more in ([], ["--no-stream"]):
        found = json.loads(llm("I loved the film.", "--schema", json.dumps(schema), *more))
        assert found["label"] in ("good", "bad")
        assert 1 <= found["stars"] <= 5


@pytest.mark.usefixtures("calls")
def test_functions(llm: Llm) -> None:
    """The model may call or not: what it says comes through either way."""
    functions = 'def weather(city: str) -> str:\n    "The weather in a city."\n    return f"fine in {city}"\n'
    for more in ([], ["--no-stream"]):
        assert llm("What is the weather like in Rome?", "--functions", functions, *more).strip()
