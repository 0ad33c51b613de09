from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.forms import form_of
from penstock.errors import UsageError
from penstock.grammars.grammar import MOST_CHARACTERS

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_none() -> None:
    assert form_of(None, None, None) == {}


def test_each(schema: Path) -> None:
    assert json.loads(form_of(schema, None, None)["schema"]) == SCHEMA
    assert form_of(None, "a+", None) == {"regex": "a+"}
    assert form_of(None, None, schema) == {"grammar": schema.read_text()}


def test_several_at_once(schema: Path) -> None:
    with pytest.raises(UsageError, match="--schema and --regex are given together"):
        form_of(schema, "a", None)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long").write_text("a" * (MOST_CHARACTERS + 1))
    problems = {"gone": "No such file", ".": "directory", "bytes": "no UTF-8 text", "long": "too long"}
    for name, problem in problems.items():
        with pytest.raises(UsageError, match=problem):
            form_of(tmp_path / name, None, None)
