"""A stand-in for the Hugging Face Hub, on this machine's loopback: config.json, and the errors that the Hub gives."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ERRORS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/missing": (401, "RepoNotFound"),
    "owner/weights-only": (404, "EntryNotFound"),
    "owner/on-fire": (500, None),
}


@dataclass
class Hub:
    url: str
    configs: dict[str, Any]
    """Content of config.json by repository; bytes as they stand."""
    tokens: list[str | None] = field(default_factory=list)
    """What each request was authorised with."""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to use this hub, and no proxy."""
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        kept.pop("HF_HUB_OFFLINE", None)
        return kept | {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_test"}


@contextmanager
def serve(configs: dict[str, Any]) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            repo, _, file = self.path.strip("/").partition("/resolve/main/")
            if repo in ERRORS:
                self._answer(ERRORS[repo][0], {"X-Error-Code": ERRORS[repo][1]})
            elif repo == "owner/moved":  # as the Hub does for files that are not large
                self._answer(307, {"Location": f"/owner/model/resolve/main/{file}"})
            elif repo in hub.configs and file == "config.json":
                content = hub.configs[repo]
                self._answer(200, {}, content if isinstance(content, bytes) else json.dumps(content).encode())
            else:
                self._answer(418, {})

        def _answer(self, status: int, headers: dict[str, str | None], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}", configs)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
