"""Faults of the server's own: each is the failure of the requests that it meets, and the engine's thread lives on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from helpers.serving import PATIENCE, Serving, braked, eventually, serving
from penstock import LLM
from penstock.openai_api.answers import Answers
from penstock.sampling import Sampler
from penstock.server import worker
from penstock.server.job import Job
from penstock.server.metrics import Metrics
from penstock.server.worker import Worker

BODY = {"prompt": "def ", "max_tokens": 3, "temperature": 0}
VICTIM = {**BODY, "prompt": [7, 8], "n": 2}
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with LLM.open("demo", memory="1GiB", draft="none") as llm, serving(llm) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: Serving) -> object:
    return answer(server)


def answer(server: Serving) -> object:
    return server.post(COMPLETIONS, json=BODY).json()["choices"]


def is_victim(job: Job) -> bool:
    return job.request.prompts[0][0] == 7


def failing(real: Callable[..., Any], meets: Callable[..., bool]) -> Callable[..., Any]:
    """Raises where `meets` says so of the arguments, and does what it should elsewhere."""

    def call(*args: Any, **options: Any) -> Any:
        if meets(*args, **options):
            raise ZeroDivisionError("a secret of the server's")
        return real(*args, **options)

    return call


def draws(self: Sampler, logits: object, position: int, seen: Any, allowed: object) -> bool:
    return bool(seen[0] == 7)


def of_victim(self: object, *args: Any) -> bool:
    if isinstance(self, Answers):
        return self.request.prompts[0][0] == 7
    return is_victim(self if isinstance(self, Job) else args[0])


def answers_of_victim(self: object, answers: Answers) -> bool:
    return answers.request.prompts[0][0] == 7


def submitted(llm: LLM, request: Any) -> bool:
    return request.prompts[0][0] == 7


def second_choice(llm: LLM, prompt: Any, *_: object, choice: int = 0, **__: object) -> bool:
    return prompt[0] == 7 and choice == 1


OWN = {
    "drawn": (Sampler, "__call__", draws),
    "submitted": (worker, "submit", submitted),
    "submitted in part": (LLM, "submit", second_choice),
    "delivered": (Worker, "_deliver_one", of_victim),
}
"""Steps that one request takes, and that fail for it."""
LEAVING = {
    "counted": (Metrics, "left", answers_of_victim),
    "cancelled": (Answers, "cancel", of_victim),
}
"""Steps after which it has its answer already."""


def beside(server: Serving, arm: Callable[[], None]) -> tuple[httpx.Response, httpx.Response]:
    """What an honest request and the victim get that share passes, where something fails from some point on."""
    with braked(server.llm) as brake, ThreadPoolExecutor(2) as pool:
        good: Future[httpx.Response] = pool.submit(server.post, COMPLETIONS, json=BODY)
        assert brake.holds.wait(PATIENCE)
        bad = pool.submit(server.post, COMPLETIONS, json=VICTIM)
        eventually(lambda: server.worker.queued == 1)
        arm()
        brake.release()
        return good.result(), bad.result()


@pytest.mark.parametrize("step", [*OWN, *LEAVING])
def test_of_one_request(
    server: Serving, expected: object, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner, name, meets = (OWN | LEAVING)[step]
    good, bad = beside(server, lambda: monkeypatch.setattr(owner, name, failing(getattr(owner, name), meets)))
    assert good.json()["choices"] == expected
    if step in OWN:
        assert bad.status_code == 500
        assert bad.json()["error"]["type"] == "server_error"
        assert "secret" not in bad.text
    else:
        assert bad.status_code == 200
    eventually(lambda: server.worker.running == 0)
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)
    monkeypatch.undo()
    lives_on(server, expected)


@pytest.mark.parametrize("name", ["_drop_cancelled", "_admit", "_pass", "_deliver"])
def test_between_passes(server: Serving, expected: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are there fail, and those that come later do not."""
    responses = beside(
        server, lambda: monkeypatch.setattr(Worker, name, failing(getattr(Worker, name), lambda *_: True))
    )
    assert [response.status_code for response in responses] == [500, 500]
    monkeypatch.undo()
    lives_on(server, expected)


def lives_on(server: Serving, expected: object) -> None:
    assert server.worker.alive
    assert answer(server) == expected
    eventually(lambda: server.worker.running == 0 and not server.llm.busy)
    assert server.llm.engine.scheduler.active == []
