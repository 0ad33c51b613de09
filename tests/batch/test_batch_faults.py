"""Faults of Penstock's own while a batch runs: the line that meets one gets an error, the others their answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.batches import ask, by_id, run_batch, write_requests
from helpers.thorough import quick
from penstock import LLM
from penstock.batch import bench
from penstock.batch.records import Names
from penstock.completion import Completion
from penstock.openai_api.answers import Answers
from penstock.sampling import Sampler

REQUESTS = [ask("a"), ask("victim", seed=13, temperature=0.5, n=2, logprobs=1), ask("b", max_tokens=9), ask("c")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert run_batch(write_requests(folder / "in.jsonl", REQUESTS), folder / "out.jsonl", at_once=3).failed == 0
    return by_id(folder / "out.jsonl")


STEPS: dict[str, tuple[object, str, Callable[..., bool]]] = {
    "parsed": (bench, "parse", lambda url, body: body.get("seed") == 13),
    "submitted in part": (LLM, "submit", lambda *args, choice=0, **_: args[2].seed == 13 and choice == 1),
    "drawn": (Sampler, "__call__", lambda self, *_: self.seed == 13),
    "drawn later": (Sampler, "__call__", lambda self, _, __, seen, ___: self.seed == 13 and len(seen) > 9),
    "made text": (Completion, "_new_text", lambda self: self.stats.seed == 13),
    "kept": (bench, "_new_tokens", lambda running: running.asked.request.custom_id == "victim"),
    "answered": (Answers, "response", lambda self, **_: self.request.params.seed == 13),
    "written": (Names, "answered", lambda self, line, custom_id, body: custom_id == "victim"),
}


@pytest.mark.parametrize("step", quick(["parsed", "drawn later", "kept"], STEPS))
def test_of_one_line(tmp_path: Path, expected: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, meets = STEPS[step]
    real, met = getattr(owner, name), []
    models: list[LLM] = []

    def call(*args: Any, **options: Any) -> Any:
        if meets(*args, **options):
            met.append(True)
            raise ZeroDivisionError("no reason")
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)
    monkeypatch.setattr(LLM, "close", lambda llm: (models.append(llm), closed(llm)))
    path = write_requests(tmp_path / "in.jsonl", REQUESTS)
    summary = run_batch(path, tmp_path / "out.jsonl", at_once=3)
    assert met
    assert (summary.answered, summary.failed) == (3, 1)
    results = by_id(tmp_path / "out.jsonl")
    victim = results.pop("victim")
    assert victim["response"]["status_code"] == 500
    assert victim["error"]["code"] == "server_error"
    assert "ZeroDivisionError: no reason" in victim["error"]["message"]
    assert {name: answers(result) for name, result in results.items()} == {
        name: answers(result) for name, result in expected.items() if name != "victim"
    }
    assert [(llm.engine.scheduler.active, len(llm.engine.scheduler.waiting)) for llm in models] == [([], 0)]


closed = LLM.close


def answers(result: dict[str, Any]) -> object:
    return result["response"]["body"]["choices"]
