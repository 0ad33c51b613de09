from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from rich.progress import Progress

from helpers import in_process
from penstock import LLM
from penstock.cli.perplexity import _run
from penstock.scoring import Scorer, ScoringProgress

TEXT = "class Account:\n    def __init__(self, owner):\n        self.owner = owner\n\n" * 6


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text(TEXT)
    return path


def test_it_is_that_of_the_scores(text: Path) -> None:
    result = in_process.penstock("perplexity", "demo", text, "--context", "64", "--stride", "16", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    with LLM.open("demo", context=64) as llm:
        [score] = llm.score([TEXT], stride=16)
        first = llm.text_side().decode(score.token_ids[:1])
    nats = -score.logprobs
    assert told["tokens"] == len(nats) == len(score.token_ids) - 1
    assert told["perplexity"] == pytest.approx(math.exp(nats.mean()))
    assert told["standard_error"] == pytest.approx(math.exp(nats.mean()) * nats.std(ddof=1) / math.sqrt(len(nats)))
    assert told["bytes"] == len(TEXT) - len(first)
    assert told["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / told["bytes"])
    assert (told["context"], told["stride"]) == (64, 16)
    assert told["files"][0]["file"] == str(text)


def test_several_texts(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("import os\nimport sys\n\nprint(os.getcwd())\n")
    result = in_process.penstock("perplexity", "demo", text, other)
    first, second, whole = result.stdout.splitlines()
    assert first.startswith(f"{text}: perplexity ")
    assert second.startswith(f"{other}: perplexity ")
    assert whole.startswith("all: perplexity ")
    with LLM.open("demo", context=2048) as llm:
        nats = np.concatenate([-score.logprobs for score in llm.score([TEXT, other.read_text()], stride=1024)])
    assert f"perplexity {math.exp(nats.mean()):.4f} ± " in whole
    assert f" {len(nats):,} tokens, {nats.mean():.5f} nats a token, " in whole


def test_weights_that_foresee_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp of so many nats is not a number any more."""
    shown: list[str] = []
    monkeypatch.setattr(Progress, "update", lambda *_, description, **__: shown.append(description))
    progress = [ScoringProgress(0, 2, 0.0), ScoringProgress(1, 2, 2.0), ScoringProgress(2, 2, 5000.0)]
    _run(cast("Scorer", SimpleNamespace(run=lambda: progress)), quiet=True)
    assert shown == ["scoring", "perplexity 7.389", "perplexity inf"]


def test_standard_input(text: Path) -> None:
    command = [sys.executable, "-m", "penstock", "perplexity", "demo"]
    piped = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=False, timeout=120)
    named = in_process.penstock("perplexity", "demo", text)
    assert piped.stdout.removeprefix("-: ") == named.stdout.removeprefix(f"{text}: ")
    assert piped.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "cannot be read as a text"),
        (["-", "-"], "read once"),
        (["TEXT", "--stride", "64", "--context", "64"], "windows have 64 tokens"),
        (["TEXT", "--stride", "0"], "out of range"),
        (["TEXT", "--context", "1"], "out of range"),
        (["EMPTY"], "no tokens|none can be scored"),
    ],
)
def test_wrong_use(text: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").write_text("")
    names = {"TEXT": str(text), "EMPTY": str(tmp_path / "empty")}
    result = in_process.penstock("perplexity", "demo", *(names.get(argument, argument) for argument in arguments))
    assert result.returncode == 2
    assert any(part in result.stderr for part in message.split("|")), result.stderr
