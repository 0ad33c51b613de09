"""What may take long is done beside the loop that talks to clients: no other client waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from helpers.serving import PATIENCE, Serving, eventually, serving
from penstock import LLM
from penstock.openai_api.answers import Answers
from penstock.server import worker

BODY: Any = {"prompt": "def ", "max_tokens": 3, "temperature": 0}
SLOW: Any = {**BODY, "prompt": [7, 8], "stream": True}
COMPLETIONS = "/v1/completions"


@pytest.fixture
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running


class Gate:
    """Stands before the engine, and lets one request wait there, as one whose grammar is compiled does."""

    def __init__(self) -> None:
        self.holds, self.opened = threading.Event(), threading.Event()

    def __call__(self, llm: LLM, request: Any, **options: Any) -> Answers:
        if request.prompts[0][0] == 7:
            self.holds.set()
            assert self.opened.wait(PATIENCE)
        return submit(llm, request, **options)


submit = worker.submit


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, server: Serving) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(worker, "submit", gate)
    yield gate
    gate.opened.set()


def stream(server: Serving, body: Any) -> Any:
    return httpx.stream("POST", server.url + COMPLETIONS, json=body, timeout=PATIENCE)


def test_others_come_and_go_while_one_is_begun(server: Serving, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool, stream(server, SLOW) as slow:
        assert gate.holds.wait(PATIENCE)
        good = pool.submit(server.post, COMPLETIONS, json=BODY)
        eventually(lambda: server.worker.queued == 1)
        with stream(server, {**BODY, "stream": True}) as waiting:
            line = next(line for line in waiting.iter_lines() if line)
            assert json.loads(line[2:])["waiting"] == 2
        eventually(lambda: server.worker.queued == 1)
        health = httpx.get(f"{server.url}/health").json()
        assert (health["running"], health["queued"]) == (1, 1)
        assert server.metric("penstock_running_requests") == 1
        gate.opened.set()
        assert list(slow.iter_lines())[-2] == "data: [DONE]"
        assert good.result().status_code == 200


def test_one_that_goes_away_while_it_is_begun(server: Serving, gate: Gate) -> None:
    with stream(server, SLOW):
        assert gate.holds.wait(PATIENCE)
    eventually(lambda: all(job.cancelled for job in server.worker._running))
    gate.opened.set()
    eventually(lambda: server.worker.running == 0 and not server.llm.busy)
    assert server.post(COMPLETIONS, json=BODY).status_code == 200


def test_the_server_ends_while_one_is_begun(server: Serving, gate: Gate) -> None:
    llm = server.llm
    with ThreadPoolExecutor(1) as pool, stream(server, SLOW) as slow:
        assert gate.holds.wait(PATIENCE)
        pool.submit(server.worker.close).result(PATIENCE)
        assert any("shutting down" in line for line in slow.iter_lines())
        gate.opened.set()
    eventually(lambda: not server.worker.alive)
    assert not llm.busy


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {**BODY, "echo": True, "logprobs": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 3}),
    ],
)
def test_whole_answers_are_put_together(
    server: Serving, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    threads: list[str] = []
    real = Answers._response

    def response(self: Answers, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(self, *args)

    monkeypatch.setattr(Answers, "_response", response)
    assert server.post(path, json=body).status_code == 200
    assert [name.partition("_")[0] for name in threads] == ["prepare"]
