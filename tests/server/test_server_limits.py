"""Clients that are slow, that go away, that want too much; an engine that takes long, or fails."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import Request

from helpers.cases import DEMO
from helpers.packed_files import flip
from helpers.serving import PATIENCE, Serving, braked, eventually, serving
from penstock import LLM
from penstock.errors import ChecksumError, MemoryCeilingError, NumericsError, ReadError
from penstock.memory.text_room import BYTES_TO_TOKENIZE
from penstock.openai_api.errors import RequestError
from penstock.packing.pack import pack
from penstock.server.app import create_app
from penstock.server.bodies import Bodies
from penstock.server.metrics import Metrics
from penstock.server.settings import PAGE_BYTES, Settings, default_body, queue_tokens

BODY = {"prompt": "def ", "max_tokens": 3, "temperature": 0}
ENDLESS = {"prompt": "def ", "max_tokens": 100000, "ignore_eos": True}
COMPLETIONS = "/v1/completions"


@pytest.fixture
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm, queue=2, max_body=20000, keep_alive_seconds=0.05, patience_seconds=0.2) as running:
        yield running


class Raw:
    """A connection to say whatever one likes on, as slowly as one likes."""

    def __init__(self, server: Serving) -> None:
        host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, length: int | str) -> None:
        """Begin a request with a body of so many bytes; "chunked" does not say how many."""
        size = f"Content-Length: {length}" if isinstance(length, int) else "Transfer-Encoding: chunked"
        self.send(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode())
        self.send(f"Connection: close\r\n{size}\r\n\r\n".encode())

    def rest(self) -> str:
        """All that comes until the server closes the connection."""
        parts = []
        while data := self.socket.recv(1 << 16):
            parts.append(data)
        return b"".join(parts).decode()


def post(pool: ThreadPoolExecutor, server: Serving, **body: Any) -> Future[httpx.Response]:
    return pool.submit(server.post, COMPLETIONS, json={**BODY, **body})


class TestQueue:
    def test_full(self, server: Serving) -> None:
        with braked(server.llm) as brake, ThreadPoolExecutor(3) as pool:
            running = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            waiting = [post(pool, server) for _ in range(2)]
            eventually(lambda: server.worker.queued == 2)
            for stream in (False, True):
                with pytest.raises(openai.RateLimitError, match="2 requests wait already") as caught:
                    server.client().completions.create(model="demo", prompt="x", stream=stream)
                assert 1 <= int(caught.value.response.headers["retry-after"]) <= 600
            assert caught.value.code == "queue_full"
            brake.release()
            assert [answer.result().status_code for answer in [running, *waiting]] == [200] * 3
        assert server.metric('penstock_requests_total{outcome="queue_full"}') == 2
        assert server.post(COMPLETIONS, json=BODY).status_code == 200

    def test_many_tokens_fill_it_too(self, llm: LLM) -> None:
        with (
            serving(llm, queue=100, queue_tokens=1000) as server,
            braked(llm) as brake,
            ThreadPoolExecutor(2) as pool,
        ):
            running = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            waiting = post(pool, server, prompt=[5] * 900)
            eventually(lambda: server.worker.queued == 1)
            assert server.post(COMPLETIONS, json={**BODY, "prompt": [5] * 200}).status_code == 429
            brake.release()
            assert running.result().status_code == waiting.result().status_code == 200
            # one that would fill it by itself is taken where nobody waits
            assert server.post(COMPLETIONS, json={**BODY, "prompt": [5] * 1100}).status_code == 200

    def test_one_that_goes_away_leaves_it(self, server: Serving) -> None:
        with braked(server.llm) as brake, ThreadPoolExecutor(2) as pool:
            running = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            with Raw(server) as client:
                body = json.dumps(BODY).encode()
                client.head(len(body))
                client.send(body)
                eventually(lambda: server.worker.queued == 1)
            eventually(lambda: server.worker.queued == 0)
            brake.release()
            assert running.result().status_code == 200


class TestGone:
    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_ends_with_its_client(self, server: Serving, stream: bool) -> None:
        cancelled = server.metric('penstock_requests_total{outcome="cancelled"}')
        with Raw(server) as client:
            body = json.dumps({**ENDLESS, "stream": stream}).encode()
            client.head(len(body))
            client.send(body)
            eventually(lambda: server.worker.progress.passes > 3)
            assert server.worker.running == 1
        eventually(lambda: server.worker.running == 0 and not server.llm.busy)
        eventually(lambda: server.metric('penstock_requests_total{outcome="cancelled"}') == cancelled + 1)
        assert server.post(COMPLETIONS, json=BODY).status_code == 200

    def test_the_pass_ends_at_the_next_layer(self, server: Serving) -> None:
        expected = server.post(COMPLETIONS, json=BODY).json()["choices"]
        passes = server.worker.progress.passes
        with braked(server.llm) as brake:
            with Raw(server) as client:
                body = json.dumps(ENDLESS).encode()
                client.head(len(body))
                client.send(body)
                assert brake.holds.wait(PATIENCE)
            eventually(lambda: all(job.cancelled for job in server.worker._running))
            brake.release()
            eventually(lambda: not server.llm.busy)
        assert server.worker.progress.passes == passes
        assert server.post(COMPLETIONS, json=BODY).json()["choices"] == expected

    def test_before_its_body_is_whole(self, server: Serving) -> None:
        with Raw(server) as client:
            client.head(100)
            client.send(b'{"prompt"')
        eventually(lambda: server.metric('penstock_requests_total{outcome="cancelled"}') == 1)


class TestBodies:
    @pytest.mark.parametrize("declared", [True, False])
    def test_too_long(self, server: Serving, declared: bool) -> None:
        body = json.dumps({"prompt": "x" * 30000}).encode()
        content: Any = body if declared else iter([body[:15000], body[15000:]])
        response = server.post(COMPLETIONS, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert "20000 bytes" in response.json()["error"]["message"]

    def test_drop_by_drop(self, server: Serving) -> None:
        body = json.dumps(BODY).encode()
        with Raw(server) as client:
            client.head(len(body))
            for begin in range(0, len(body), 7):
                client.send(body[begin : begin + 7])
                time.sleep(0.005)
            assert "200 OK" in client.rest().splitlines()[0]

    def test_too_slowly(self, llm: LLM) -> None:
        with serving(llm, body_seconds=0.2) as server, Raw(server) as client:
            client.head(100)
            client.send(b"{")
            answer = client.rest()
        assert "408" in answer.splitlines()[0]
        assert "did not arrive" in answer

    def test_more_of_them_than_memory_has_room_for(self, llm: LLM) -> None:
        """Four that stand still hold all the room; the next one waits until they are given up."""
        with serving(llm, max_body=5000, body_seconds=0.5) as server:
            clients = [Raw(server) for _ in range(4)]
            for client in clients:
                client.head("chunked")
            assert server.post(COMPLETIONS, json=BODY).status_code == 200
            for client in clients:
                assert "408" in client.rest()
                client.socket.close()

    def test_room_that_does_not_come(self) -> None:
        async def fill() -> None:
            bodies = Bodies(10, 0.05)
            async with AsyncExitStack() as stack:
                for _ in range(5):
                    request = Request({"type": "http", "headers": []}, whole)
                    assert await stack.enter_async_context(bodies.read(request)) == b"{}"

        async def whole() -> Any:
            return {"type": "http.request", "body": b"{}"}

        with pytest.raises(RequestError, match="all the room") as caught:
            asyncio.run(fill())
        assert caught.value.status == 429

    def test_one_byte_a_read(self, server: Serving) -> None:
        """A client that takes its answer slowly gets all of it."""
        body = json.dumps({**BODY, "stream": True}).encode()
        with Raw(server) as client:
            client.head(len(body))
            client.send(body)
            answer = b""
            while data := client.socket.recv(16):
                answer += data
        assert b"data: [DONE]" in answer

    def test_one_that_takes_nothing_is_given_up(self, llm: LLM, tmp_path: Path) -> None:
        body = json.dumps({**ENDLESS, "stream": True}).encode()
        arrived = iter([{"type": "http.request", "body": body}])
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers, "query_string": b""}

        async def receive() -> Any:
            return next(arrived, None) or await asyncio.sleep(PATIENCE)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(PATIENCE)

        with serving(llm, body_seconds=0.2) as server:
            metrics = Metrics()
            app = create_app(server.worker, Settings(1000, 1000, body_seconds=0.2), metrics, tmp_path)
            asyncio.run(app(scope, receive, send))
            eventually(lambda: not llm.busy and server.worker.running == 0)
        assert 'penstock_requests_total{outcome="cancelled"} 1.0' in metrics.page().decode()


class TestPatience:
    """A pass that takes long. Signs of life come, and then the answer."""

    def test_a_stream(self, server: Serving) -> None:
        stream = {"json": {**BODY, "stream": True}}
        with braked(server.llm) as brake, httpx.stream("POST", server.url + COMPLETIONS, **stream) as response:
            lines = (line for line in response.iter_lines() if line)
            comments = [json.loads(next(lines)[2:]) for _ in range(10)]
            brake.release()
            rest = list(lines)
        assert comments[-1]["layers"] == server.llm.config.num_hidden_layers
        assert comments[-1]["waiting"] == 0
        assert rest[-1] == "data: [DONE]"

    def test_what_comments_tell(self, server: Serving) -> None:
        with braked(server.llm) as brake, ThreadPoolExecutor(1) as pool:
            running = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            with httpx.stream("POST", server.url + COMPLETIONS, json={**BODY, "stream": True}) as response:
                lines = (line for line in response.iter_lines() if line)
                waiting = [json.loads(next(lines)[2:]) for _ in range(5)]
                brake.release()
                assert list(lines)[-1] == "data: [DONE]"
            assert running.result().status_code == 200
        assert {state["waiting"] for state in waiting} == {1}
        assert waiting[-1]["seconds"] >= waiting[0]["seconds"]

    def test_a_whole_answer_begins_with_white_space(self, server: Serving) -> None:
        with braked(server.llm) as brake, httpx.stream("POST", server.url + COMPLETIONS, json=BODY) as response:
            parts = response.iter_raw()
            first = [next(parts) for _ in range(3)]
            brake.release()
            body = b"".join([*first, *parts])
        assert response.status_code == 200
        assert set(b"".join(first)) == {ord(" ")}
        assert json.loads(body)["choices"][0]["text"]

    def test_a_whole_answer_of_many_quick_passes_begins_too(self, server: Serving) -> None:
        with httpx.stream("POST", server.url + COMPLETIONS, json={**ENDLESS, "max_tokens": 2000}) as response:
            assert next(response.iter_raw()) == b" "
        eventually(lambda: server.worker.running == 0)

    def test_the_openai_client_waits_for_both(self, server: Serving) -> None:
        """Its limit is on silence; the pass takes longer than that."""
        client = server.client(timeout=0.5)
        options: Any = {"model": "demo", "prompt": "def ", "max_tokens": 3, "temperature": 0}
        for stream in (False, True):
            with braked(server.llm) as brake, ThreadPoolExecutor(1) as pool:
                answer = pool.submit(client.completions.create, stream=stream, **options)
                assert brake.holds.wait(PATIENCE)
                time.sleep(0.8)
                brake.release()
                got = answer.result()
                text = "".join(chunk.choices[0].text for chunk in got) if stream else got.choices[0].text
            assert text == client.completions.create(**options).choices[0].text

    def test_errors_are_told_before_the_answer_begins(self, server: Serving) -> None:
        with braked(server.llm) as brake, ThreadPoolExecutor(1) as pool:
            running = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            response = server.post(COMPLETIONS, json={**BODY, "prompt": [99999]})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
            brake.release()
            assert running.result().status_code == 200


class TestFailures:
    @pytest.mark.parametrize(
        "error", [ReadError("The disk is gone.", "Look."), ChecksumError("Bytes of w differ."), RuntimeError("a bug")]
    )
    def test_requests_fail_and_the_server_lives_on(
        self, server: Serving, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        expected = server.post(COMPLETIONS, json=BODY).json()["choices"]

        def fail() -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(server.llm, "step", fail)
            response = server.post(COMPLETIONS, json=BODY)
            stream = server.post(COMPLETIONS, json={**BODY, "stream": True})
        told = response.json()["error"]
        assert (response.status_code, told["type"]) == (500, "server_error")
        assert (
            ("a bug" not in told["message"])
            if isinstance(error, RuntimeError)
            else (str(error.args[0]) in told["message"])
        )
        last = stream.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: ")) == {"error": told}
        assert server.post(COMPLETIONS, json=BODY).json()["choices"] == expected
        assert server.metric('penstock_requests_total{outcome="failed"}') == 2

    def test_after_the_answer_began_the_connection_is_cut(
        self, server: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail_late() -> None:
            time.sleep(0.6)
            raise ReadError("The disk is gone.")

        monkeypatch.setattr(server.llm, "step", fail_late)
        with pytest.raises(httpx.RemoteProtocolError):
            server.post(COMPLETIONS, json=BODY)

    @pytest.mark.parametrize("error", [NumericsError("Not finite."), MemoryCeilingError("Too small.")])
    def test_one_that_fails_leaves_the_others_alone(
        self, server: Serving, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        expected = server.post(COMPLETIONS, json=BODY).json()["choices"]
        step = server.llm.step

        def fail_for_one() -> Any:
            victims = [s for s in server.llm.engine.scheduler.active if s.prompt[0] == 7]
            for sequence in victims:
                sequence.error = error
                server.llm.engine.cancel(sequence, "error")
            if victims and isinstance(error, MemoryCeilingError):
                raise error
            return step()

        with braked(server.llm) as brake, ThreadPoolExecutor(2) as pool:
            good = post(pool, server)
            assert brake.holds.wait(PATIENCE)
            bad = post(pool, server, prompt=[7, 8])
            eventually(lambda: server.worker.queued == 1)
            monkeypatch.setattr(server.llm, "step", fail_for_one)
            brake.release()
            assert good.result().json()["choices"] == expected
            assert bad.result().status_code == (500 if isinstance(error, NumericsError) else 400)
            assert error.args[0] in bad.result().json()["error"]["message"]


def test_damaged_weights_give_no_token_and_repaired_ones_do(tmp_path: Path) -> None:
    pack(DEMO, tmp_path / "packed")
    weights = tmp_path / "packed" / "model.safetensors"
    with LLM.open(str(tmp_path / "packed"), memory="1GiB", draft="none") as llm, serving(llm) as server:
        flip(weights, 6_000_000)
        for _ in range(2):
            response = server.post(COMPLETIONS, json=BODY)
            assert response.status_code == 500
            assert "the checksum does not match" in response.json()["error"]["message"]
        flip(weights, 6_000_000)
        assert server.post(COMPLETIONS, json=BODY).json()["usage"]["completion_tokens"] == 3


class TestSettings:
    def test_the_longest_body_follows_the_ceiling(self) -> None:
        assert default_body(128 << 20) == 32 << 10
        assert default_body(2 << 30) == (2 << 30) // 16384
        assert default_body(1 << 40) == 4 << 20

    def test_the_reserve_is_a_small_part_of_it(self) -> None:
        for ceiling in (512 << 20, 2 << 30, 16 << 30):
            body = default_body(ceiling)
            settings = Settings(max_body=body, queue_tokens=queue_tokens(ceiling, 100, body))
            assert settings.reserve - PAGE_BYTES + BYTES_TO_TOKENIZE * body < ceiling / 12
            assert ceiling / 32 >= PAGE_BYTES
