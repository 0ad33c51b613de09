"""Conversations where several models are served: each remembers its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.http_siege import write_model
from helpers.serving import PATIENCE, Serving, eventually, serving_shelf
from penstock.options import OpenOptions
from penstock.server.shelf import Shelf

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
OPTIONS = OpenOptions(memory="1GiB", draft="none", longest_text=1 << 16)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return tmp_path / "chats"


@pytest.fixture
def server(tmp_path: Path, chats: Path) -> Iterator[Serving]:
    write_model(tmp_path / "other")
    with Shelf.read({"demo": "demo", "other": str(tmp_path / "other")}, OPTIONS) as shelf:
        shelf.open_first()
        with serving_shelf(shelf, chats=chats, keep_alive_seconds=0.1) as running:
            yield running


@pytest.fixture
def page(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as page:
        yield page


def answered(page: httpx.Client, chat: dict[str, Any], **body: Any) -> dict[str, Any]:
    """A conversation once its answer is there."""
    url = f"/chats/{chat['id']}"
    response = page.post(f"{url}/answer", json=body, headers={"If-Match": f'"{chat["version"]}"'})
    assert response.status_code == 202, response.text
    eventually(lambda: not page.get(url).json()["running"])
    return dict(page.get(url).json())


def test_each_remembers_its_model(page: httpx.Client, server: Serving) -> None:
    first, second = (page.post("/chats", json=GREEDY | {"model": model}).json() for model in ("demo", "other"))
    for _ in range(2):
        first = answered(page, first, keep=len(first["messages"]), content="hello")
        assert server.worker.shelf.current == "demo"
        second = answered(page, second, keep=len(second["messages"]), content="hello")
        assert server.worker.shelf.current == "other"
    for chat, model in ((first, "demo"), (second, "other")):
        assert {message["model"] for message in chat["messages"][1::2]} == {model}
        assert chat["settings"]["model"] == model
        assert [message["state"] for message in chat["messages"][1::2]] != ["failed"] * 2


def test_one_that_never_had_a_choice_is_the_first_models(page: httpx.Client, server: Serving) -> None:
    chat = page.post("/chats", json=GREEDY).json()
    other = page.post("/chats", json=GREEDY | {"model": "other"}).json()
    answered(page, other, content="hello")
    assert server.worker.shelf.current == "other"
    chat = answered(page, chat, content="hello")
    assert (chat["settings"]["model"], chat["messages"][1]["model"]) == ("demo", "demo")


def test_an_answer_is_continued_by_the_model_that_began_it(page: httpx.Client, server: Serving, chats: Path) -> None:
    chat = answered(page, page.post("/chats", json=GREEDY | {"model": "other"}).json(), content="hello")
    path = chats / f"{chat['id']}.json"
    kept = json.loads(path.read_bytes())
    ids = kept["messages"][1]["token_ids"]
    kept["messages"][1].update(state="cut", content="", token_ids=ids[:3])
    kept["settings"]["model"] = "demo"
    path.write_text(json.dumps(kept))
    after = answered(page, page.get(f"/chats/{chat['id']}").json(), resume=True)
    assert after["messages"][1]["model"] == "other"
    assert after["settings"]["model"] == "demo"
    assert json.loads(path.read_bytes())["messages"][1]["token_ids"] == ids
    again = answered(page, after, keep=1)
    assert again["messages"][1]["model"] == "demo"


def test_a_model_that_is_not_served_any_more(page: httpx.Client) -> None:
    chat = page.post("/chats", json=GREEDY | {"model": "gone"}).json()
    response = page.post(f"/chats/{chat['id']}/answer", json={"content": "x"}, headers={"If-Match": '"1"'})
    assert response.status_code == 404
    assert "Ask for 'demo', 'other'" in response.json()["error"]["message"]
