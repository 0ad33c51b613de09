"""`penstock serve` as a process of its own: its line, its signals, its memory."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from helpers.http_siege import write_model
from helpers.serving import eventually
from helpers.thorough import quick
from penstock.checkpoints.store import find_model
from penstock.cli import app
from penstock.cli.running import running, users_of
from penstock.errors import PenstockError, UsageError

COMMAND = (sys.executable, "-m", "penstock", "serve")


@contextmanager
def served(*arguments: str, said: str = "demo is") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address; `said`: what its line begins with."""
    command = [*COMMAND, "demo", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(f"{said} served at http://127.0.0.1:")
            yield process, line.split()[-1]
        finally:
            process.kill()


def refused(*arguments: str) -> tuple[int, str]:
    """The exit code and what is said."""
    result = CliRunner().invoke(app, ["serve", "demo", *arguments])
    if isinstance(result.exception, PenstockError):
        return 2 if isinstance(result.exception, UsageError) else 1, str(result.exception)
    return result.exit_code, unboxed(result.output)


def unboxed(output: str) -> str:
    """The words of an error, without the box around them."""
    return " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize(("sent", "code"), quick(1, [(signal.SIGINT, 130), (signal.SIGTERM, 0)]))
def test_a_signal_ends_streams_and_then_the_server(sent: signal.Signals, code: int) -> None:
    body = {"prompt": "x", "stream": True, "max_tokens": 100000, "ignore_eos": True}
    with served("--memory", "1GiB") as (process, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines)
            process.send_signal(sent)
            last = list(lines)[-1]
        assert "The server is shutting down." in last
        assert process.wait(30) == code
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "no.such.host.invalid"), "Cannot listen at port 8000"),
        (("--host", "192.0.2.1"), "Cannot listen at port 8000 of 192.0.2.1"),
        (("--api-key", "", "--port", "0"), "The API key is empty"),
        (("--max-body", "lots", "--port", "0"), "'lots' is not a size"),
        (("--memory", "60MiB", "--port", "0"), "The least that works is"),
        (("--chats", "", "--port", "0"), "--chats names no folder"),
        (
            ("--chats", "/dev/null/chats", "--port", "0"),
            "Cannot keep conversations in /dev/null/chats: Not",
        ),
        (("--queue", "0"), "--queue"),
        (("--port", "99999"), "--port"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], words: str) -> None:
    code, errors = refused(*arguments)
    assert code == 2
    assert words in errors


def test_conversations_outlive_the_server(tmp_path: Path) -> None:
    for found in ([], ["New chat"]):
        with served("--memory", "1GiB", "--chats", str(tmp_path / "chats")) as (_, url):
            assert [chat["title"] for chat in httpx.get(f"{url}/chats").json()["chats"]] == found
            assert httpx.post(f"{url}/chats", json={}).status_code == 201
    with served("--memory", "1GiB", "--chats", "none") as (_, url):
        assert httpx.post(f"{url}/chats", json={}).status_code == 201
        assert len(httpx.get(f"{url}/chats").json()["chats"]) == 1


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = refused("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "Choose another with --port" in errors


def test_two_models_of_one_name(tmp_path: Path) -> None:
    write_model(tmp_path / "demo")
    for again in ("demo", str(tmp_path / "demo")):
        code, errors = refused(again, "--port", "0")
        assert code == 2
        assert f"Two models are called 'demo': demo and {again}" in errors


def test_what_is_wrong_with_any_of_several_is_told_at_the_start(tmp_path: Path) -> None:
    code, errors = refused("no-such-model", "--port", "0")
    assert (code, "no-such-model: no such directory" in errors) == (1, True)
    code, errors = refused(str(tmp_path), "--port", "0")
    assert (code, str(tmp_path) in errors) == (1, True)
    write_model(tmp_path / "other")
    code, errors = refused(str(tmp_path / "other"), "--port", "0", "--adapter", str(tmp_path))
    assert (code, "An adapter is of one model, and several are served" in errors) == (2, True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_several_models_take_turns_under_one_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    write_model(tmp_path / "other")
    ceiling = least_mib(str(tmp_path / "other")) + 8
    with served(str(tmp_path / "other"), "--memory", f"{ceiling}MiB", said="demo and other are") as (process, url):
        assert [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]] == ["demo", "other"]
        for model in ("other", "demo") * 3:
            body = {"model": model, "prompt": "def ", "max_tokens": 2, "ignore_eos": True}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
            assert (answer["model"], answer["usage"]["completion_tokens"]) == (model, 2)
        assert peak_bytes(process) < ceiling << 20
        [about] = running()
        assert about.model == f"demo, {tmp_path / 'other'}"
        assert (about.path, about.further) == (str(find_model("demo").resolve()), [str(tmp_path / "other")])
        assert f"penstock serve (process {process.pid})" in users_of(tmp_path / "other")


def least_mib(*models: str) -> int:
    """That a server of the demo model and others says that it needs; what libraries take is not the same everywhere."""
    command = [*COMMAND, "demo", "--port", "0", *models, "--memory", "100MiB"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"The least that works is ([\d,]+) MiB", refused.stderr)
    assert found is not None, refused.stderr
    return int(found[1].replace(",", ""))


def peak_bytes(process: subprocess.Popen[str]) -> int:
    """Most bytes that were resident."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.thorough
def test_a_hundred_long_prompts_wait_under_the_ceiling() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "

    def send(index: int, client: socket.socket) -> None:
        body = json.dumps({"prompt": f"{index} {text * 20}"[:30_000], "max_tokens": 1})
        client.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())

    with served("--memory", "400MiB") as (process, url):
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        clients = [socket.create_connection(address) for _ in range(101)]
        threads = [threading.Thread(target=send, args=client) for client in enumerate(clients)]
        for thread in threads:
            thread.start()

        def waiting() -> int:
            return int(httpx.get(f"{url}/health", timeout=60).json()["queued"])

        eventually(lambda: waiting() >= 99)
        assert peak_bytes(process) < 400 << 20
        for client in clients:
            client.close()
        eventually(lambda: waiting() == 0)
        for thread in threads:
            thread.join()
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "def ", "max_tokens": 2}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 2
