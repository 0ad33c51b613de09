"""More connections than there are descriptors for, and connections on which nothing comes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from helpers.http_requests import BASES, TEXT, body_of, request
from helpers.http_siege import write_model
from helpers.serving import PATIENCE, Serving, eventually, serving
from penstock import LLM
from penstock.server.connections import Connection

DESCRIPTORS, CONNECTIONS = 256, 400
SERVE = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
from penstock.cli import main
main()
"""
PLAIN = request(TEXT, body_of(BASES[TEXT]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tiny") / "model"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM.open(str(model), memory="1GiB", draft="none", context=64) as llm:
        yield llm


@contextmanager
def few_descriptors(model: Path, log: Path) -> Iterator[str]:
    """The address of a server process that may open only so many files."""
    arguments = ["serve", str(model), "--port", "0", "--memory", "1GiB", "--draft", "none", "--queue", "1000"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
            assert process.poll() is None
        finally:
            process.terminate()


def test_out_of_descriptors(model: Path, tmp_path: Path) -> None:
    """Those that have a connection are served, the others are refused at once, and in the end all is as before."""
    with few_descriptors(model, tmp_path / "log") as url:
        expected = httpx.post(url + TEXT, json={"prompt": "a", "max_tokens": 2, "seed": 1}).json()["choices"]
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(url)) for _ in range(CONNECTIONS)]
            for client in clients[:50]:
                client.sendall(PLAIN)
            answers = [everything(client) for client in clients[:50]]
            assert {answer[9:12] for answer in answers} == {b"200"}
            refused = [answer for client in clients[-50:] if (answer := everything(client))]
            assert {answer[9:12] for answer in refused} == {b"503"}
            told = json.loads(refused[0].partition(b"\r\n\r\n")[2])
            assert "connections are open already" in told["error"]["message"]
        again = eventually_answered(url)
        assert again == expected
    assert "out of system resource" not in (tmp_path / "log").read_text()
    assert "Too many open files" not in (tmp_path / "log").read_text()


def connect(url: str) -> socket.socket:
    return socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0), timeout=PATIENCE)


def everything(client: socket.socket) -> bytes:
    parts = []
    while data := client.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def eventually_answered(url: str) -> object:
    """The choices of a plain request, as soon as there is a connection for it."""
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(httpx.post(url + TEXT, json={"prompt": "a", "max_tokens": 2, "seed": 1}, timeout=PATIENCE))
        return answers[-1].status_code == 200

    eventually(answered)
    return answers[-1].json()["choices"]


class TestStandingStill:
    @pytest.mark.parametrize(
        "said", [b"", b"GET /hea", PLAIN[:-1], b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"]
    )
    def test_one_that_sends_no_whole_request_is_closed(self, llm: LLM, said: bytes) -> None:
        with serving(llm, body_seconds=0.2) as server, connect(server.url) as client:
            client.sendall(said)
            answer = everything(client)  # until the server closes it
        assert answer[9:12] in (b"", b"200", b"408")

    def test_drop_by_drop_makes_no_difference(self, llm: LLM) -> None:
        with serving(llm, body_seconds=0.3) as server, connect(server.url) as client:
            client.settimeout(0.01)

            def closed() -> bool:
                try:
                    client.sendall(b"a")
                    return client.recv(1) == b""
                except TimeoutError:
                    return False
                except ConnectionError:
                    return True

            eventually(closed)

    def test_one_that_takes_no_answers_is_closed(self, llm: LLM) -> None:
        """Requests for the page, one behind the other, none of whose answers is read."""
        with serving(llm, body_seconds=0.2) as server, connect(server.url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            page = request("/", None, {"Connection": "keep-alive"})
            with suppress(ConnectionError):
                while True:  # a client that is not closed on waits here until it loses its patience
                    client.sendall(page * 100)

    def test_one_that_takes_no_answers_and_asks_no_more_is_closed(
        self, llm: LLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server waits for the next request then, not for room, and what is not taken lies in its buffer."""
        made, lost = Connection.connection_made, threading.Event()

        def with_much_room(connection: Connection, transport: asyncio.Transport) -> None:
            transport.set_write_buffer_limits(1 << 30)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
            made(connection, transport)

        ended = Connection.connection_lost
        monkeypatch.setattr(Connection, "connection_made", with_much_room)
        monkeypatch.setattr(Connection, "connection_lost", lambda *a: (ended(*a), lost.set()))
        with serving(llm, body_seconds=0.2) as server, connect(server.url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            client.sendall(request("/openapi.json", None, {"Connection": "keep-alive"}) * 8)
            assert lost.wait(PATIENCE)

    def test_one_that_is_served_is_not(self, llm: LLM, server: Serving) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            for _ in range(3):
                assert client.get("/health").status_code == 200


@pytest.fixture
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running
