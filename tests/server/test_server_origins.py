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


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "ftp://a", "https://", "null"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(UsageError, match="is no origin"):
        check_origin(origin)
    assert check_origin("https://App.example:8080") == "https://app.example:8080"
