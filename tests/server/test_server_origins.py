"""Pages from elsewhere that the server was told to let in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from helpers.serving import Serving, serving
from penstock import LLM
from penstock.errors import UsageError
from penstock.server.guard import check_origin

FRIEND, STRANGER = "https://app.example", "https://evil.example"
ASK: Any = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with LLM.open("demo", memory="1GiB") as llm, serving(llm, allowed_origins=(FRIEND,), api_key="k") as running:
        yield running


def test_a_browser_may_ask_first_without_a_key(server: Serving) -> None:
    found = httpx.options(f"{server.url}/v1/chat/completions", headers={"Origin": FRIEND, **ASK})
    assert found.status_code == 204
    assert found.headers["access-control-allow-origin"] == FRIEND
    assert "Authorization" in found.headers["access-control-allow-headers"]
    assert found.headers["vary"] == "Origin"


def test_the_headers_of_openais_client_may_be_sent(server: Serving) -> None:
    """Those that the browser asks about, as far as they are names of headers."""
    names = ["authorization", "content-type", "x-stainless-lang", "x-stainless-retry-count"]
    asked = {**ASK, "Access-Control-Request-Headers": ",".join([*names, "a b", "", "x" * 101])}
    found = httpx.options(f"{server.url}/v1/chat/completions", headers={"Origin": FRIEND, **asked})
    allowed = found.headers["access-control-allow-headers"].lower().split(", ")
    assert {*allowed} == {*names}
    many = {**ASK, "Access-Control-Request-Headers": ",".join(f"x-{index}" for index in range(1000))}
    found = httpx.options(f"{server.url}/v1/chat/completions", headers={"Origin": FRIEND, **many})
    assert found.status_code == 204
    assert len(found.headers["access-control-allow-headers"]) < 1000


def test_pages_may_read_when_to_come_back(server: Serving) -> None:
    found = httpx.get(f"{server.url}/health", headers={"Origin": FRIEND})
    assert found.headers["access-control-expose-headers"] == "Retry-After"


@pytest.mark.parametrize("key", ["k", "wrong"])
def test_answers_may_be_read_and_errors_too(server: Serving, key: str) -> None:
    headers = {"Origin": FRIEND, "Authorization": f"Bearer {key}"}
    found = httpx.get(f"{server.url}/v1/models", headers=headers)
    assert found.status_code == (200 if key == "k" else 401)
    assert found.headers["access-control-allow-origin"] == FRIEND


def test_others_are_refused(server: Serving) -> None:
    for request in (httpx.get, httpx.options):
        found = request(f"{server.url}/v1/models", headers={"Origin": STRANGER, "Authorization": "Bearer k", **ASK})
        assert found.status_code == 403
        assert "access-control-allow-origin" not in found.headers
    assert "access-control-allow-origin" not in httpx.get(f"{server.url}/health").headers


@pytest.mark.parametrize(
    "origin",
    [
        "*", "app.example", "https://app.example/", "ftp://a", "https://", "null", "http://[", "http://[::1",
        "https://app.example:port", "https://app.example:99999", "https://me@app.example",
    ],
)  # fmt: skip
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(UsageError, match="is no origin"):
        check_origin(origin)
    assert check_origin("https://App.example:8080") == "https://app.example:8080"


@pytest.mark.parametrize(
    ("origin", "written"),
    [
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://[::1]:80", "http://[::1]"),
        ("https://app.example:", "https://app.example"),
    ],
)
def test_the_port_that_browsers_leave_out(origin: str, written: str) -> None:
    assert check_origin(origin) == written
