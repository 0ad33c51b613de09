"""The chat page: a few files without outside requests, which the browser is told to hold it to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from penstock.server.chats.markdown import code_css

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs its own scripts and talks to this server, and nothing else: no script or image of a text's own."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page."""

    data: bytes
    media_type: str
    tag: str

    def reply(self, request: Request) -> Response:
        """The file, or 304 where the browser has it."""
        headers = {
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
            "ETag": self.tag,
        }
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.data, media_type=f"{self.media_type}; charset=utf-8", headers=headers)


def assets() -> dict[str, Asset]:
    """The page's files by name. Only these are served, so no name leads anywhere else."""
    found = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
    found["code.css"] = code_css().encode()
    return {name: _asset(name, data) for name, data in sorted(found.items())}


def _asset(name: str, data: bytes) -> Asset:
    return Asset(data, TYPES[Path(name).suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
