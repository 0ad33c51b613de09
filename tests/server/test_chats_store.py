"""Conversations in files: what is kept, what is refused, and who may overwrite whom."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.openai_api.errors import RequestError
from penstock.server.chats import store as store_module
from penstock.server.chats.conversation import Ask, Chat, ChatSettings, Message, title_of
from penstock.server.chats.store import ChatStore


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "below" / "chats")


def renamed(title: str) -> Callable[[Chat], None]:
    return lambda chat: setattr(chat, "title", title)


def damaged(store: ChatStore, change: Callable[[dict[str, Any]], None]) -> RequestError:
    """What is said of a conversation whose file was changed by others."""
    chat = store.create(Chat(messages=[Message(role="user", content="hello")]))
    path = store.folder / f"{chat.id}.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(RequestError) as raised:
        store.load(chat.id)
    [entry] = store.list()
    assert entry.title == "Unreadable"
    assert entry.error == raised.value.problem
    store.remove(chat.id)
    return raised.value


def test_kept_for_its_user_alone(store: ChatStore) -> None:
    assert store.list() == []
    assert not store.folder.exists()
    chat = store.create(Chat(title="one", settings=ChatSettings(temperature=0, json_schema='{"type": "object"}')))
    assert ChatStore(store.folder).load(chat.id) == chat
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    path = store.folder / f"{chat.id}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.id for entry in store.list()] == [chat.id]
    assert {path.name for path in store.folder.iterdir()} == {path.name, ".lock"}


def test_versions(store: ChatStore) -> None:
    chat = store.create(Chat())
    other = ChatStore(store.folder)
    assert store.change(chat.id, 1, renamed("a")).version == 2
    with pytest.raises(RequestError, match=r"changed elsewhere\.\sLoad it again") as raised:
        other.change(chat.id, 1, renamed("b"))
    assert raised.value.status == 412
    assert other.load(chat.id).title == "a"
    assert other.change(chat.id, None, renamed("c"), count=False).version == 2
    assert store.list()[0].title == "c"


def test_several_stores_lose_nothing(store: ChatStore) -> None:
    chat = store.create(Chat())

    def add() -> None:
        mine = ChatStore(store.folder)
        for _ in range(10):
            mine.change(chat.id, None, lambda chat: chat.messages.append(Message(role="user", content="x")))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = store.load(chat.id)
    assert len(after.messages) == 40
    assert after.version == 41


def test_a_write_that_fails_leaves_what_was(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = store.create(Chat(title="before"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RequestError, match=r"No space left on device\.\sMake room") as raised:
            store.change(chat.id, 1, renamed("after"))
    assert raised.value.status == 500
    assert store.load(chat.id) == chat
    assert not list(store.folder.glob("*.new"))


def test_deleted_and_had_back(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = store.create(Chat())
    store.remove(chat.id)
    assert store.list() == []
    for gone in (store.load, store.remove):
        with pytest.raises(RequestError, match="There is no conversation") as raised:
            gone(chat.id)
        assert raised.value.status == 404
    store.restore(chat.id)
    assert store.load(chat.id) == chat
    store.remove(chat.id)
    store.forget_removed()
    assert list(store.folder.glob("*.deleted"))
    monkeypatch.setattr(store_module, "UNDO_SECONDS", -1)
    store.forget_removed()
    with pytest.raises(RequestError, match="There is no conversation"):
        store.restore(chat.id)


@pytest.mark.parametrize("id", ["", "..", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, "0" * 32, "0" * 31 + "\n"])
def test_other_names_lead_nowhere(store: ChatStore, id: str) -> None:
    store.make()
    for use in (store.load, store.remove, store.restore, lambda id: store.change(id, None, renamed("x"))):
        with pytest.raises(RequestError, match="There is no conversation"):
            use(id)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda chat: chat.update(format=2), "format: Input should be 1"),
        (lambda chat: chat.update(more=1), "more: Extra inputs are not permitted"),
        (lambda chat: chat.update(id="0" * 32), "its id is 0000"),
        (lambda chat: chat.update(version="1"), "version: Input should be a valid integer"),
        (lambda chat: chat.update(title=""), "title: String should have at least 1 character"),
        (lambda chat: chat["settings"].update(temperature=3), "settings.temperature: Input should be less"),
        (lambda chat: chat["settings"].update(json_schema="[]"), "settings.json_schema: is no JSON object"),
        (lambda chat: chat["messages"][0].update(role="system"), "messages.0.role: Input should be 'user'"),
        (lambda chat: chat["messages"][0].update(id="../x"), "messages.0.id: String should match"),
        (lambda chat: chat["messages"][0].update(token_ids=[-1]), "messages.0.token_ids.0: Input should be greater"),
        (lambda chat: chat["messages"].extend(chat["messages"] * 2000), "messages: List should have at most 2000"),
        (lambda chat: chat.update(messages={}), "messages: Input should be a valid array"),
    ],
)
def test_damaged_files(store: ChatStore, change: Callable[[dict[str, Any]], None], why: str) -> None:
    error = damaged(store, change)
    assert f".json is no conversation: {why}" in error.problem
    assert error.remedy == "Delete the conversation, or move the file elsewhere."
    assert error.status == 500


def test_files_that_are_none(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.make()
    (store.folder / "notes.json").write_text("{}")
    (store.folder / ("1" * 32 + ".json")).write_bytes(b"\xff")
    (store.folder / ("2" * 32 + ".json")).mkdir()
    os.mkfifo(store.folder / ("3" * 32 + ".json"))
    errors = {entry.id[0]: entry.error or "" for entry in store.list()}
    assert set(errors) == {"1", "2", "3"}
    assert "Invalid JSON" in errors["1"]
    assert "is a directory" in errors["2"]
    assert "is a device, pipe or socket" in errors["3"]
    chat = store.create(Chat())
    monkeypatch.setattr(store_module, "MOST_BYTES", 100)
    with pytest.raises(RequestError, match="is longer than 100 bytes"):
        store.load(chat.id)
    with pytest.raises(RequestError, match=r"would take more than 100 bytes\.\sBegin a new one") as raised:
        store.create(Chat())
    assert raised.value.status == 413


def test_not_too_many(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_CHATS", 2)
    store.create(Chat())
    store.create(Chat())
    with pytest.raises(RequestError, match=r"There are 2 conversations already\.\sDelete some"):
        store.create(Chat())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ChatStore(tmp_path / "file" / "chats")
    with pytest.raises(RequestError, match=r"Not a directory\.\sMake room or set its rights, or serve with another"):
        store.create(Chat())


def test_what_is_asked() -> None:
    chat = Chat(settings=ChatSettings(system="be brief", seed=1, json_schema='{"type": "object"}'))
    answer = Ask(content="hello\n  there").apply(chat)
    assert chat.title == "hello there"
    schema = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    assert chat.request() == {
        "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": schema},
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello\n  there"}],
    }
    answer.state = "failed"  # without a word, so the next question joins the one before
    Ask(keep=2, content="again").apply(chat)
    assert chat.request()["messages"][1:] == [{"role": "user", "content": "hello\n  there\n\nagain"}]
    Ask(keep=0, content="other").apply(chat)
    assert [message.content for message in chat.messages] == ["other", ""]
    Ask(keep=1).apply(chat)
    assert [message.role for message in chat.messages] == ["user", "assistant"]


def test_what_cannot_be_asked() -> None:
    for ask, why in [
        (Ask(keep=1, content="x"), "has 0 messages"),
        (Ask(), "There is no question to answer. Send content."),
        (Ask(resume=True), "There is no unfinished answer to go on with. Ask anew."),
    ]:
        with pytest.raises(RequestError) as raised:
            ask.apply(Chat())
        assert why in " ".join(str(raised.value).split())


def test_titles() -> None:
    assert title_of(" a\n b ") == "a b"
    assert len(title_of("word " * 100)) <= 60
    assert title_of("word " * 100).endswith("…")
