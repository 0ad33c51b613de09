"""lm-evaluation-harness: its own `hf` model, Penstock's, and Penstock's server tell the same of the same tasks.

Run by `./scripts/test --clients`. The tasks are small ones of our own, about Python, which the demo model knows; with
PENSTOCK_CLIENTS_MODEL another model is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import DEMO
from penstock.errors import UsageError

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("torch")

from lm_eval.tasks import TaskManager  # noqa: E402

from penstock.integrations.lm_eval import PenstockLM  # noqa: E402

MODEL = Path(os.environ.get("PENSTOCK_CLIENTS_MODEL", str(DEMO)))
WINDOW = 256
QUESTIONS = [
    ("def add(a, b):\n    return", ["a + b", "import os", "None None", "class:"], 0),
    ("import os\nimport", ["def", "sys", "return x", "1 + 1"], 1),
    ("class Stack:\n    def __init__(self", ["import", "):", "== 3", ", items):"], 3),
    ("for i in", ["range(10):", "while", "def f():", "else"], 0),
    ("try:\n    f()\nexcept", ["import", "lambda", "ValueError:", "+="], 2),
    ("with open(path) as", ["f:", "return", "4", "if"], 0),
    ("if x is None:\n    x =", ["class", "[]", "def", "in in"], 1),
    ("print(", ['"hello")', "import", "class:", "= ="], 0),
]
TEXTS = [
    "import os\n\n\ndef read(path):\n    with open(path) as f:\n        return f.read()\n",
    "class Account:\n    def __init__(self, owner):\n        self.owner = owner\n" * 20,
]
TASKS = {
    "mc": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Of files alone."""
    folder = tmp_path_factory.mktemp("tasks")
    asked = [{"question": q, "choices": [f" {c}" for c in choices], "answer": a} for q, choices, a in QUESTIONS]
    for name, documents in (("mc", asked), ("until", asked), ("rolling", [{"text": text} for text in TEXTS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "target_delimiter": "",
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    """The name of the model that is served, and where."""
    command = [sys.executable, "-m", "penstock", "serve", str(MODEL), "--port", "0", "--kv-dtype", "f32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        words = process.stdout.readline().split()
        yield words[0], words[-1]
    finally:
        process.terminate()
        process.wait(60)


def evaluated(tasks: TaskManager, kind: str, names: list[str], **arguments: Any) -> dict[str, Any]:
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=kind, model_args=arguments, tasks=names, task_manager=tasks, bootstrap_iters=0, log_samples=True
    )
    return found


def responses(found: dict[str, Any], task: str) -> list[Any]:
    """What the model answered to each document."""
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


@pytest.fixture(scope="module")
def theirs(tasks: TaskManager) -> dict[str, Any]:
    return evaluated(
        tasks, "hf", [*TASKS], pretrained=str(MODEL), dtype="float32", device="cpu", max_length=WINDOW, batch_size=1
    )


@pytest.fixture(scope="module")
def ours(tasks: TaskManager) -> dict[str, Any]:
    return evaluated(tasks, "penstock", [*TASKS], pretrained=str(MODEL), kv_dtype="f32", max_length=WINDOW)


@pytest.fixture(scope="module")
def served(tasks: TaskManager, server: tuple[str, str]) -> dict[str, Any]:
    return evaluated(
        tasks,
        "local-completions",
        ["mc", "until"],
        base_url=f"{server[1]}/v1/completions",
        model=server[0],
        tokenizer=str(MODEL),
        tokenizer_backend="huggingface",
        add_bos_token=True,
        max_length=WINDOW,
        num_concurrent=4,
    )


def compare_choices(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for own, expected in zip(responses(ours, "mc"), responses(theirs, "mc"), strict=True):
        for (own_choice,), (expected_choice,) in zip(own, expected, strict=True):
            assert float(own_choice[0]) == pytest.approx(float(expected_choice[0]), rel=1e-3)
            assert own_choice[1] == expected_choice[1]
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["mc"][metric] == theirs["results"]["mc"][metric]


def test_choices(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    compare_choices(ours, theirs)


def test_choices_through_the_server(served: dict[str, Any], theirs: dict[str, Any]) -> None:
    compare_choices(served, theirs)


def test_whole_texts(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for metric in ("word_perplexity,none", "bits_per_byte,none"):
        assert ours["results"]["rolling"][metric] == pytest.approx(theirs["results"]["rolling"][metric], rel=1e-3)


def test_answers(ours: dict[str, Any], served: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Greedy ones, which are the same, but for a near tie that rounding may decide otherwise."""
    expected = responses(theirs, "until")
    for found in (ours, served):
        same = sum(own == other for own, other in zip(responses(found, "until"), expected, strict=True))
        assert same >= len(QUESTIONS) - 1


def test_options_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="no option quantize"):
        PenstockLM(str(MODEL), quantize=True)
