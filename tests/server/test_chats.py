"""Conversations over HTTP: answers that go on without anybody, several tabs, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.serving import PATIENCE, Serving, braked, eventually, serving
from penstock import LLM
from penstock.events import Event
from penstock.server.chats import store

GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB") as llm:
        yield llm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chats"


@pytest.fixture
def server(llm: LLM, folder: Path) -> Iterator[Serving]:
    with serving(llm, chats=folder, keep_alive_seconds=0.1) as running:
        yield running


@pytest.fixture
def page(server: Serving) -> Iterator[Page]:
    with Page(server) as page:
        yield page


class Page:
    """What a tab does."""

    def __init__(self, server: Serving, **headers: str) -> None:
        self.http = httpx.Client(base_url=server.url, timeout=PATIENCE, headers=headers)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def new(self, **settings: Any) -> dict[str, Any]:
        response = self.http.post("/chats", json=settings)
        assert response.status_code == 201
        return dict(response.json())

    def get(self, id: str) -> dict[str, Any]:
        response = self.http.get(f"/chats/{id}")
        assert response.status_code == 200, response.text
        assert response.headers["etag"] == f'"{response.json()["version"]}"'
        return dict(response.json())

    def ask(self, chat: dict[str, Any], **body: Any) -> httpx.Response:
        headers = {"If-Match": f'"{chat["version"]}"'}
        return self.http.post(f"/chats/{chat['id']}/answer", json=body, headers=headers)

    def asked(self, chat: dict[str, Any], **body: Any) -> dict[str, Any]:
        response = self.ask(chat, **body)
        assert response.status_code == 202, response.text
        return dict(response.json())

    def frames(self, id: str) -> Iterator[dict[str, Any]]:
        """What is shown of a running answer, until it ends."""
        with self.http.stream("GET", f"/chats/{id}/answer") as stream:
            assert stream.status_code == 200
            ended = False
            for line in stream.iter_lines():
                ended = ended or line == "event: end"
                if line.startswith("data: ") and not ended:
                    yield json.loads(line[6:])
            assert ended

    def shown(self, id: str) -> str:
        """The HTML that a follower has in the end."""
        blocks: list[str] = []
        for frame in self.frames(id):
            if "blocks" in frame:
                blocks[frame["from"] :] = frame["blocks"]
        return "".join(blocks)

    def ended(self, id: str) -> dict[str, Any]:
        eventually(lambda: not self.get(id)["running"])
        return self.get(id)


def problem(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def test_an_answer_is_followed_and_kept(page: Page, server: Serving, folder: Path) -> None:
    chat = page.asked(page.new(**GREEDY), content="two\nlines")
    assert chat["title"] == "two lines"
    assert chat["running"]
    html = page.shown(chat["id"])
    after = page.get(chat["id"])
    assert not after["running"]
    assert after["version"] == chat["version"] + 1
    question, answer = after["messages"]
    expected = server.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "two\nlines"}], temperature=0, max_tokens=12
    )
    assert question["content"] == "two\nlines"
    assert answer["content"] == expected.choices[0].message.content
    assert (answer["state"], answer["resumable"]) == ("length", True)
    assert "".join(answer["blocks"]) == html
    assert answer["stats"]["tokens"] == 12
    assert answer["stats"]["passes"] >= 1
    assert answer["seed"] is not None
    assert server.metric('penstock_requests_total{outcome="completed"}') >= 1
    assert json.loads((folder / f"{chat['id']}.json").read_bytes())["messages"][1]["content"] == answer["content"]
    assert page.http.get(f"/chats/{chat['id']}/answer").status_code == 404


def test_an_answer_needs_nobody_and_two_may_follow(page: Page, server: Serving) -> None:
    with braked(server.llm) as brake:
        chat = page.asked(page.new(**GREEDY), content="hello")
        assert brake.holds.wait(PATIENCE)
        with page.http.stream("GET", f"/chats/{chat['id']}/answer") as stream:
            frame = json.loads(next(stream.iter_lines())[6:])  # and then this tab is closed
        assert frame["from"] == 0
        assert frame["state"] == "running"
        assert frame["layer"] >= 0
        assert [entry["running"] for entry in page.http.get("/chats").json()["chats"]] == [True]
        seen: list[str] = []
        followers = [threading.Thread(target=lambda: seen.append(page.shown(chat["id"]))) for _ in range(2)]
        for follower in followers:
            follower.start()
        brake.release()
        for follower in followers:
            follower.join()
    after = page.ended(chat["id"])
    assert seen == ["".join(after["messages"][1]["blocks"])] * 2


def hold_until(server: Serving, method: str, patch: pytest.MonkeyPatch, passes: int = 5) -> None:
    """The engine does so many more passes, and then waits for a call of the worker's method."""
    called, original, seen = threading.Event(), getattr(server.worker, method), []

    def hold(event: Event) -> None:
        if event.kind == "pass":
            seen.append(event)
            assert len(seen) < passes or called.wait(PATIENCE)

    def call(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        called.set()

    patch.setattr(server.llm.events, "listeners", [*server.llm.events.listeners, hold])
    patch.setattr(server.worker, method, call)


def test_stop_and_go_on_as_if_nothing_had_been(page: Page, server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page.asked(page.new(temperature=1.0, seed=5, max_tokens=24), content="hello")
    whole = page.ended(whole["id"])
    hold_until(server, "cancel", monkeypatch)
    chat = page.asked(page.new(temperature=1.0, seed=5, max_tokens=24), content="hello")
    for frame in page.frames(chat["id"]):
        if frame["stats"]["tokens"] >= 2 and frame["state"] == "running":
            page.http.delete(f"/chats/{chat['id']}/answer")
    chat = page.get(chat["id"])
    assert chat["messages"][1]["state"] == "stopped"
    before = chat["messages"][1]["stats"]["tokens"]
    assert 2 <= before < 24
    chat = page.asked(chat, resume=True)
    chat = page.ended(chat["id"])
    assert chat["messages"][1]["content"] == whole["messages"][1]["content"]
    assert chat["messages"][1]["stats"]["tokens"] == whole["messages"][1]["stats"]["tokens"]
    assert chat["messages"][1]["seed"] == 5


def test_past_its_limit(page: Page) -> None:
    chat = page.ended(page.asked(page.new(**GREEDY), content="hello")["id"])
    first = chat["messages"][1]
    assert first["state"] == "length"
    chat = page.ended(page.asked(chat, resume=True)["id"])
    assert chat["messages"][1]["content"].startswith(first["content"])
    assert chat["messages"][1]["stats"]["tokens"] == 24


def test_answers_follow_a_schema_also_after_a_cut(page: Page) -> None:
    properties = {"city": {"type": "string", "maxLength": 5}}
    schema = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    chat = page.asked(page.new(temperature=0.0, max_tokens=3, json_schema=json.dumps(schema)), content="hello")
    chat = page.ended(chat["id"])
    for _ in range(20):
        if chat["messages"][1]["state"] == "done":
            break
        assert chat["messages"][1]["state"] == "length"
        chat = page.ended(page.asked(chat, resume=True)["id"])
    assert set(json.loads(chat["messages"][1]["content"])) == {"city"}


def test_again_and_in_other_words(page: Page) -> None:
    chat = page.ended(page.asked(page.new(**GREEDY), content="one")["id"])
    chat = page.ended(page.asked(chat, keep=2, content="two")["id"])
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant"] * 2
    again = page.ended(page.asked(chat, keep=3)["id"])
    assert again["messages"][3]["content"] == chat["messages"][3]["content"]
    assert again["messages"][3]["id"] != chat["messages"][3]["id"]
    edited = page.ended(page.asked(again, keep=0, content="three")["id"])
    assert edited["messages"][0]["content"] == "three"
    assert len(edited["messages"]) == 2
    assert edited["title"] == "one"


def test_tabs_do_not_overwrite_each_other(page: Page, server: Serving) -> None:
    chat = page.new(**GREEDY)
    url, first = f"/chats/{chat['id']}", {"If-Match": '"1"'}
    assert page.http.patch(url, json={"title": "a"}, headers=first).json()["version"] == 2
    changed = (412, "The conversation was changed elsewhere. Load it again.")
    assert problem(page.http.patch(url, json={"title": "b"}, headers=first)) == changed
    assert problem(page.ask(chat, content="hello")) == changed
    chat = page.get(chat["id"])
    with braked(server.llm):
        running = page.asked(chat, content="hello")
        both = page.ask(running, content="me too")
        assert problem(both) == (409, "An answer is on its way in this conversation. Wait, or stop it.")
        renamed = page.http.patch(url, json={"title": "c"}, headers={"If-Match": f'"{running["version"]}"'}).json()
        assert renamed["running"]
    after = page.ended(chat["id"])
    assert after["title"] == "c"
    assert after["messages"][1]["stats"]["tokens"] == 12


def test_the_list_and_what_is_deleted(page: Page, server: Serving) -> None:
    ids = [page.new()["id"] for _ in range(2)]
    response = page.http.get("/chats")
    assert [entry["id"] for entry in response.json()["chats"]] == ids[::-1]
    again = page.http.get("/chats", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    with braked(server.llm):
        page.asked(page.get(ids[0]), content="hello")
        assert page.http.delete(f"/chats/{ids[0]}").status_code == 204  # and its answer is stopped
    assert [entry["id"] for entry in page.http.get("/chats").json()["chats"]] == [ids[1]]
    assert problem(page.http.get(f"/chats/{ids[0]}")) == (404, f"There is no conversation '{ids[0]}'.")
    assert page.http.post(f"/chats/{ids[0]}/restore").status_code == 204
    assert page.get(ids[0])["messages"][1]["state"] == "stopped"


def test_the_server_ends_amid_an_answer(llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"temperature": 1.0, "seed": 5, "max_tokens": 24}
    with serving(llm, chats=folder, keep_alive_seconds=0.1) as server, Page(server) as page:
        whole = page.ended(page.asked(page.new(**settings), content="hello")["id"])
        hold_until(server, "close", monkeypatch)
        chat = page.asked(page.new(**settings), content="hello")
        for frame in page.frames(chat["id"]):
            if frame["stats"]["tokens"] >= 2:
                break
    monkeypatch.undo()
    with serving(llm, chats=folder) as server, Page(server) as page:
        cut = page.get(chat["id"])["messages"][1]
        assert cut["state"] == "cut"
        assert cut["error"] is None
        assert 2 <= cut["stats"]["tokens"] < 24
        assert (
            page.ended(page.asked(page.get(chat["id"]), resume=True)["id"])["messages"][1]["content"]
            == (whole["messages"][1]["content"])
        )


def test_the_server_is_killed_amid_an_answer(page: Page, folder: Path) -> None:
    chat = page.ended(page.asked(page.new(**GREEDY), content="hello")["id"])
    path = folder / f"{chat['id']}.json"
    kept = json.loads(path.read_bytes())
    kept["messages"][1].update(state="running", content="half", token_ids=kept["messages"][1]["token_ids"][:4])
    path.write_text(json.dumps(kept))
    found = page.get(chat["id"])
    assert not found["running"]
    assert (found["messages"][1]["state"], found["messages"][1]["resumable"]) == ("cut", True)
    after = page.ended(page.asked(found, resume=True)["id"])
    assert after["messages"][1]["content"] == chat["messages"][1]["content"]


def test_what_is_refused_changes_nothing(page: Page) -> None:
    chat = page.new(model="other")
    assert problem(page.ask(chat, content="hello"))[0] == 404
    assert page.get(chat["id"]) == chat
    url, headers = f"/chats/{chat['id']}", {"If-Match": '"1"'}
    for body, why in [
        ({"settings": {"temperature": 3}}, "settings.temperature=3: Input should be less than or equal to 2."),
        ({"settings": {"json_schema": "{"}}, "settings.json_schema is not JSON: EOF while parsing"),
        ({"settings": {"top_k": 1}}, "settings.top_k is not known here: leave it out."),
        ({"title": ""}, 'title="": String should have at least 1 character.'),
        ({"title": "x" * 201}, "title="),
        ([], ": Input should be a valid dictionary or instance of ChatChange."),
    ]:
        status, message = problem(page.http.patch(url, json=body, headers=headers))
        assert status == 400
        assert why in message
    assert problem(page.http.patch(url, json={"title": "x"})) == (
        428, "If-Match names no version of the conversation. Send the one that you saw."
    )  # fmt: skip
    for answer in ({"content": ""}, {"keep": -1}, {"keep": 1}, {}, {"resume": True}, {"content": "x", "more": 1}):
        assert page.ask(chat, **answer).status_code == 400
    assert page.http.post("/chats", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert page.http.post("/chats", content="{", headers={"Content-Type": "application/json"}).status_code == 400
    assert page.http.delete(f"{url}/answer").json()["error"]["code"] == "no_answer"
    assert page.http.get("/chats/..%2f..%2fx").status_code == 404
    assert page.get(chat["id"]) == chat


def test_a_conversation_that_is_too_long(llm: LLM, folder: Path) -> None:
    with serving(llm, chats=folder, max_body=2000) as server, Page(server) as page:
        chat = page.new(system="x" * 1500)
        status, message = problem(page.ask(chat, content="y" * 600))
        assert status == 413
        assert message == "The conversation is longer than 2000 bytes. Begin a new one, or raise --max-body."
        assert problem(page.ask(chat, content="y" * 2001))[0] == 413
        assert page.get(chat["id"]) == chat


def test_a_conversation_that_is_full(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = page.new()
    monkeypatch.setattr(store, "MOST_BYTES", 4000)
    assert problem(page.ask(chat, content="x" * 2000)) == (413, "The conversation is full. Begin a new one.")
    assert page.get(chat["id"]) == chat


def test_only_who_may(llm: LLM, folder: Path) -> None:
    with serving(llm, chats=folder, api_key="secret") as server, Page(server) as page:
        assert page.http.get("/").status_code == 200
        assert page.http.get("/static/main.js").status_code == 200
        for method, path in [("GET", "/chats"), ("POST", "/chats"), ("DELETE", "/chats/" + "0" * 32)]:
            assert page.http.request(method, path).status_code == 401
        with Page(server, Authorization="Bearer secret") as mine:
            assert mine.http.get("/chats").json() == {"chats": []}
            elsewhere = mine.http.post("/chats", json={}, headers={"Origin": "http://elsewhere.example"})
            assert elsewhere.status_code == 403
            assert mine.http.get("/chats", headers={"Host": "elsewhere.example"}).status_code == 403
            assert mine.http.get("/chats").json() == {"chats": []}


def test_pages_that_may_use_the_model_may_not_read_conversations(llm: LLM, folder: Path) -> None:
    there = {"Origin": "http://app.example"}
    with serving(llm, chats=folder, allowed_origins=("http://app.example",)) as server, Page(server, **there) as page:
        models = page.http.get("/v1/models")
        assert (models.status_code, models.headers["access-control-allow-origin"]) == (200, "http://app.example")
        for path in ("/chats", "/chats/" + "0" * 32):
            refused = page.http.get(path)
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


def test_a_folder_that_fails(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(llm, chats=tmp_path / "file" / "chats") as server, Page(server) as page:
        status, message = problem(page.http.post("/chats", json={}))
        assert status == 500
        assert message.endswith("Not a directory. Make room or set its rights, or serve with another --chats.")


def test_the_files_of_the_page(page: Page) -> None:
    index = page.http.get("/")
    policy = index.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "img-src 'self'" in policy
    assert "unsafe" not in policy
    assert "style=" not in index.text
    assert "<script>" not in index.text
    for name in ("main.js", "page.css", "code.css", "icon.svg"):
        response = page.http.get(f"/static/{name}")
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
        same = page.http.get(f"/static/{name}", headers={"If-None-Match": response.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
    for name in ("", "page.py", "..%2fpage.py", "%2e%2e/page.py", "main.js%00"):
        assert page.http.get(f"/static/{name}").status_code == 404
