"""A stand-in for the Hugging Face Hub, on this machine's loopback: listings, files by ranges, and much that goes wrong.

As with the real one, files of weights are redirected to another host, here another port, which must never see the
user's token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ERRORS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/missing": (401, "RepoNotFound"),
    "owner/weights-only": (404, "EntryNotFound"),
    "owner/on-fire": (500, None),
}
TOKEN = "hf_test"
_BLOCK = 1 << 16

Content = bytes | Path
Files = Mapping[str, Content]


@dataclass
class Repo:
    """Files by commit and name, and the commits of branches and tags."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Make `files` what `branch` stands for."""
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


@dataclass
class Faults:
    """What goes wrong with files of weights."""

    cuts: list[int] = field(default_factory=list)
    """The next answers break off after so many bytes."""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """The Hub refuses the next requests so."""
    store_statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """The host that has the weights does."""
    stop_after: int | None = None
    """Once so many bytes of weights have gone out, nothing more does."""
    bytes_per_second: float | None = None
    """Of each connection."""
    ignore_range: bool = False
    shift: int = 0
    """Ranges are answered with bytes so much farther on."""
    total: int | None = None
    """What Content-Range says of the file's size."""
    encoding: str | None = None
    linked_etag: str | None = None
    """What the Hub says, in place of the SHA-256."""
    etags: list[str] = field(default_factory=list)
    """Of the next answers of the host that has the weights."""
    other_commit: bool = False
    flip: set[int] = field(default_factory=set)
    """Bytes of files of weights that are served with a bit flipped."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_of(self, queue: list[Any]) -> Any:
        with self.lock:
            return queue.pop(0) if queue else None


@dataclass
class Hub:
    url: str
    store_url: str
    configs: dict[str, Any]
    """Content of config.json by repository; bytes as they stand."""
    repos: dict[str, Repo]
    gated: set[str] = field(default_factory=set)
    """Repositories that show their listing to all and their files to nobody."""
    faults: Faults = field(default_factory=Faults)
    tokens: list[str | None] = field(default_factory=list)
    """What each request was authorised with."""
    store_tokens: list[str | None] = field(default_factory=list)
    """The same, of the host that has the weights."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request to the Hub for a file."""
    store_requests: list[tuple[str, str | None]] = field(default_factory=list)
    """The same, of the host that has the weights."""
    sent: int = 0
    """Bytes of weights that went out."""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to use this hub, and no proxy."""
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            kept.pop(name, None)
        return kept | {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the hub of this process; the library has read the environment already."""
        from huggingface_hub import constants, file_download

        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        for module in (constants, file_download):  # some versions have a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in {"NO_PROXY": "*", "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)


def directory_files(path: Path) -> dict[str, Content]:
    """All files of a directory, to serve them."""
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}


@contextmanager
def serve(configs: dict[str, Any], repos: dict[str, Repo] | None = None) -> Iterator[Hub]:
    with ExitStack() as stack:
        hub = Hub("", "", configs, repos or {})
        hub.store_url = stack.enter_context(_serving(hub, _StoreHandler))
        hub.url = stack.enter_context(_serving(hub, _HubHandler))
        yield hub


@contextmanager
def _serving(hub: Hub, handler: type[_Handler]) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """Ends its connections, and so its threads, when it is closed."""

    request_queue_size = 64
    daemon_threads = False

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for request in list(self._open):
            with suppress(OSError):  # the other side has gone
                request.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, headers: Mapping[str, str | None], body: bytes = b"") -> None:
        self.send_head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_head(self, status: int, headers: Mapping[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def asked_range(self, size: int) -> tuple[int, int] | None:
        """The bytes asked for; none where it is all of them."""
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
        return (int(match[1]), min(int(match[2]) + 1, size)) if match else None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        pass


class _HubHandler(_Handler):
    """The Hub itself: what models there are, and their small files."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/agent-harnesses"):  # the library's own, of no repository and without a token
            self.answer(404, {})
            return
        self.hub.tokens.append(self.headers.get("Authorization"))
        if listing := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(listing[1], listing[2] or "main")
        elif resolve := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.hub.requests.append((path, self.headers.get("Range")))
            self._resolve(*resolve.groups())
        else:
            self.answer(418, {})

    def _list(self, repo: str, revision: str) -> None:
        if repo in ERRORS and repo != "owner/gated":
            self.answer(ERRORS[repo][0], {"X-Error-Code": ERRORS[repo][1]})
        elif repo not in self.hub.repos:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif found := self._find(repo, revision):
            commit, files = found
            siblings = [sibling(name, content) for name, content in files.items()]
            self.answer(200, {}, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def _find(self, repo: str, revision: str) -> tuple[str, Files] | None:
        found = self.hub.repos[repo]
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, found.commits[commit]

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if repo in ERRORS:
            self.answer(ERRORS[repo][0], {"X-Error-Code": ERRORS[repo][1]})
        elif repo in self.hub.gated:
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        elif repo == "owner/moved":  # as the Hub does for files that are not large
            self.answer(307, {"Location": f"/owner/model/resolve/main/{name}"})
        elif repo in self.hub.configs and name == "config.json":
            content = self.hub.configs[repo]
            self.answer(200, {}, content if isinstance(content, bytes) else json.dumps(content).encode())
        elif repo not in self.hub.repos:
            self.answer(418, {})
        elif found := self._find(repo, revision):
            self._send_file(repo, *found, name)

    def _send_file(self, repo: str, commit: str, files: Files, name: str) -> None:
        if name not in files:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        content, faults = files[name], self.hub.faults
        headers: dict[str, str | None] = {"X-Repo-Commit": commit}
        if not _is_large(name):
            assert isinstance(content, bytes) or content.stat().st_size < 1 << 24
            body = content if isinstance(content, bytes) else content.read_bytes()
            headers["ETag"] = f'"{_git_sha1(body)}"'
            if bounds := self.asked_range(len(body)):
                headers["Content-Range"] = f"bytes {bounds[0]}-{bounds[1] - 1}/{len(body)}"
                self.answer(206, headers, body[slice(*bounds)])
            else:
                self.answer(200, headers, body)
        elif refusal := faults.next_of(faults.statuses):
            self.answer(*refusal)
        else:
            headers["X-Linked-ETag"] = f'"{faults.linked_etag or _sha256(content)}"'
            headers["X-Linked-Size"] = str(_size(content))
            headers["Location"] = f"{self.hub.store_url}/{repo}/{commit}/{name}?signature=secret"
            if faults.other_commit:
                headers["X-Repo-Commit"] = "0" * 40
            self.answer(302, headers)


class _StoreHandler(_Handler):
    """The host that has the weights."""

    def do_GET(self) -> None:
        self.hub.store_tokens.append(self.headers.get("Authorization"))
        owner, repo, commit, name = unquote(urlsplit(self.path).path).strip("/").split("/", 3)
        self.hub.store_requests.append((name, self.headers.get("Range")))
        content, faults = self.hub.repos[f"{owner}/{repo}"].commits[commit][name], self.hub.faults
        size = _size(content)
        if refusal := faults.next_of(faults.store_statuses):
            self.answer(*refusal)
            return
        bounds = None if faults.ignore_range else self.asked_range(size)
        begin, end = bounds or (0, size)
        if begin >= end:
            self.answer(416, {"Content-Range": f"bytes */{size}"})
            return
        headers: dict[str, str | None] = {"Content-Encoding": faults.encoding}
        headers["ETag"] = f'"{faults.next_of(faults.etags) or "of-the-store"}"'
        if bounds:
            begin, end = begin + faults.shift, end + faults.shift
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{faults.total or size}"
        self.send_head(206 if bounds else 200, {**headers, "Content-Length": str(end - begin)})
        self._send(content, begin, end)

    def _send(self, content: Content, begin: int, end: int) -> None:
        faults = self.hub.faults
        cut = faults.next_of(faults.cuts)
        stop = end if cut is None else min(end, begin + cut)
        try:
            while begin < stop:
                block = bytearray(_read(content, begin, min(stop, begin + _BLOCK)))
                for place in faults.flip:
                    if begin <= place < begin + len(block):
                        block[place - begin] ^= 1
                if faults.stop_after is not None and self.hub.sent >= faults.stop_after:
                    break
                with faults.lock:  # before the other side has them, who may look at once
                    self.hub.sent += len(block)
                self.wfile.write(block)
                begin += len(block)
                if faults.bytes_per_second:
                    time.sleep(len(block) / faults.bytes_per_second)
        except OSError:  # the other side has gone
            self.close_connection = True
        if begin < end:
            self.close_connection = True


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf", "tokenizer.json"))


def sibling(name: str, content: Content) -> dict[str, Any]:
    size = _size(content)
    entry = {"rfilename": name, "size": size, "blobId": hashlib.sha1(name.encode()).hexdigest()}
    if _is_large(name):
        return entry | {"lfs": {"sha256": _sha256(content), "size": size, "pointerSize": 134}}
    return entry | {"blobId": _git_sha1(_read(content, 0, size))}


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _read(content: Content, begin: int, end: int) -> bytes:
    if isinstance(content, bytes):
        return content[begin:end]
    with content.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


@cache
def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
