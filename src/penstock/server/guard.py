"""Who may ask: this machine's own programs, pages of the server itself, and those who have the key."""

from __future__ import annotations

import ipaddress
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from penstock.errors import UsageError
from penstock.openai_api.errors import RequestError
from penstock.server.errors import error_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from penstock.server.settings import Settings

CHATS = "/chats"
OPEN_PATHS, OPEN_FOLDER = ("/", "/health"), "/static/"
"""They need no key: what the page is made of, and whether the server works."""
HEADERS = ("Authorization", "Content-Type")
"""That pages may send, besides those that they ask for."""
HEADER_NAME, MOST_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"), 50
DEFAULT_PORTS = {"http": 80, "https": 443}
"""Browsers leave them out of origins."""


class Guard:
    """Middleware that answers what it refuses with OpenAI's error object.

    A page from elsewhere, open in a browser on this machine, could send requests here. It is told apart by `Origin`;
    one whose name was made to resolve to this machine, by `Host`.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (origin := headers.get("origin")) is not None and self._allows(origin, scope["path"]):
            send = _allowing(origin, headers.get("access-control-request-headers", ""), send)
        try:
            asks_first = self._check(headers, scope["path"], scope["method"])
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await (Response(status_code=204) if asks_first else self._app)(scope, receive, send)

    def _allows(self, origin: str, path: str) -> bool:
        """Whether a page from elsewhere may use this path: the model, but not what is said in the server's own page."""
        return origin in self._settings.allowed_origins and not (path == CHATS or path.startswith(f"{CHATS}/"))

    def _check(self, headers: Headers, path: str, method: str) -> bool:
        """Whether a browser asks if it may send what it has not sent yet. Raises RequestError for what is refused."""
        host = headers.get("host", "")
        name = host_name(host)
        if self._settings.loopback and not is_loopback(name):
            raise RequestError(
                f"The host {host[:100]!r} is not this machine.",
                "Use 127.0.0.1 or localhost, or serve with --host and --api-key for others.",
                status=403,
            )
        if host and not name:
            raise RequestError(f"The header Host has {host[:100]!r}, which is no host.", "Send the server's own.")
        origin = headers.get("origin")
        allowed = origin is not None and self._allows(origin, path)
        if origin is not None and not allowed and not is_page_of(origin, host):
            remedy = "Use its own page, or serve with --allow-origin."
            raise RequestError(f"Pages from {origin[:100]!r} may not use this server.", remedy, status=403)
        if allowed and method == "OPTIONS" and "access-control-request-method" in headers:
            return True
        key = self._settings.api_key
        if key is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return False
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), key.encode()):
            raise RequestError("The API key is missing or wrong.", "Send Authorization: Bearer KEY.", status=401)
        return False


def _allowing(origin: str, asked: str, send: Send) -> Send:
    """Tells the browser, with each answer, that a page from there may have it (the Fetch standard's CORS protocol).
    `asked`: names of headers that the page wants to send, like those of OpenAI's client for JavaScript."""
    names = [name.strip() for name in asked.split(",", MOST_NAMES)][:MOST_NAMES]
    allowed = ", ".join([*HEADERS, *filter(HEADER_NAME.fullmatch, names)])

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            headers["Access-Control-Allow-Headers"] = allowed
            headers["Access-Control-Expose-Headers"] = "Retry-After"
            headers["Access-Control-Max-Age"] = "600"
            headers.add_vary_header("Origin")
        await send(message)

    return sending


def check_origin(origin: str) -> str:
    """An origin as browsers write it: in small letters, and without the port that its scheme has by default. Raises
    UsageError for what is none."""
    with suppress(ValueError):  # brackets that do not match, or a port that is none
        parts = urlsplit(origin)
        scheme, host, port = parts.scheme, parts.netloc, parts.port
        if scheme in DEFAULT_PORTS and parts.hostname and "@" not in host and origin == f"{scheme}://{host}":
            if port == DEFAULT_PORTS[scheme]:
                origin = origin.rpartition(":")[0]
            return origin.lower().removesuffix(":")
    raise UsageError(f"{origin!r} is no origin.", "Give one like https://app.example:8080, without a path.")


def host_name(host: str) -> str:
    """The name or address in a Host header, without the port; "" where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is none
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""


def is_page_of(origin: str, host: str) -> bool:
    """Whether a page whose Origin header is this came from that host."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
