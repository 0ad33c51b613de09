"""Conversations and the answers that run in them."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from penstock.openai_api.errors import RequestError
from penstock.server.chats.answer import RunningAnswer
from penstock.server.chats.conversation import Chat
from penstock.server.chats.markdown import render
from penstock.server.chats.store import check_room, check_version
from penstock.server.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.openai_api.answers import Prepared
    from penstock.server.chats.conversation import Ask, Message
    from penstock.server.chats.store import ChatStore
    from penstock.server.metrics import Metrics
    from penstock.server.worker import Worker

    class Gateway(Protocol):
        """What checks and tokenizes requests."""

        worker: Worker
        metrics: Metrics

        async def prepare(self, body: bytes) -> tuple[Prepared, str]: ...


T = TypeVar("T")


class Chats:
    """What the page asks for. To be used in the server's loop; raises RequestError as the store does."""

    def __init__(self, store: ChatStore, gateway: Gateway) -> None:
        self._store = store
        self._gateway = gateway
        self._worker = gateway.worker
        self._answers: dict[str, RunningAnswer] = {}
        """By conversation; there is at most one in each."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting: set[str] = set()
        self._disk = ThreadPoolExecutor(1, "chats")
        """Files are kept beside the loop: a disk that streams weights may take its time."""
        self._renderer = ThreadPoolExecutor(1, "render")

    async def list(self) -> list[dict[str, Any]]:
        """All conversations as the page lists them."""
        return [{**asdict(e), "running": self._runs(e.id)} for e in await self._on_disk(self._store.list)]

    async def create(self, chat: Chat) -> dict[str, Any]:
        return await self._view(await self._on_disk(self._store.create, chat))

    async def get(self, id: str) -> dict[str, Any]:
        """One of them as the page shows it, answers as HTML blocks."""
        return await self._view(await self._on_disk(self._store.load, id))

    async def change(self, id: str, version: int, edit: Callable[[Chat], None]) -> dict[str, Any]:
        return await self._view(await self._on_disk(self._store.change, id, version, edit))

    async def remove(self, id: str) -> None:
        """Delete one, and end the answer that runs in it."""
        if id in self._answers:
            await self.stop(id)
        await self._on_disk(self._store.remove, id)

    async def restore(self, id: str) -> None:
        await self._on_disk(self._store.restore, id)

    async def ask(self, id: str, version: int, ask: Ask) -> dict[str, Any]:
        """Begin to answer. Where that is refused, nothing has changed."""
        with self._start(id):
            chat = await self._on_disk(self._store.load, id)
            check_version(chat, version)
            message = ask.apply(chat)
            check_room(chat)
            if chat.settings.model is None and self._worker.shelf.several:
                chat.settings.model = self._worker.shelf.names[0]  # as the page shows it
            body = chat.request()
            prepared, model = await self._gateway.prepare(json.dumps(body).encode())
            prepared = self._prolonged(prepared, message)
            job = Job(prepared, model, message.token_ids)
            self._worker.offer(job)
            message.seed, message.model = prepared.params.seed, body.get("model")

            def save(stored: Chat) -> None:
                stored.title, stored.settings, stored.messages = chat.title, chat.settings, chat.messages

            answer = RunningAnswer(message, job, self._worker, self._saver(id), self._renderer)
            try:
                chat = await self._on_disk(self._store.change, id, version, save)
            except BaseException:
                self._worker.cancel(job)
                raise
            self._answers[id] = answer
            self._tasks[id] = asyncio.create_task(self._run(id, answer))
        return await self._view(chat)

    def answer(self, id: str) -> RunningAnswer:
        """What runs in a conversation. Raises RequestError, 404, where nothing does."""
        if id not in self._answers:
            raise RequestError("No answer is on its way in this conversation.", status=404, code="no_answer")
        return self._answers[id]

    async def stop(self, id: str) -> None:
        """End the answer that runs in a conversation, and wait until it is kept."""
        self.answer(id).stop()
        await asyncio.wait([self._tasks[id]])

    async def close(self) -> None:
        """Wait until what the worker has ended is kept."""
        if self._tasks:
            await asyncio.wait([*self._tasks.values()])
        self._disk.shutdown()
        self._renderer.shutdown()

    async def _run(self, id: str, answer: RunningAnswer) -> None:
        try:
            await answer.run()
        finally:
            self._gateway.metrics.count(answer.outcome)
            del self._answers[id], self._tasks[id]

    @contextmanager
    def _start(self, id: str) -> Iterator[None]:
        if id in self._starting or id in self._answers:
            raise RequestError("An answer is on its way in this conversation.", "Wait, or stop it.", status=409)
        self._starting.add(id)
        try:
            yield
        finally:
            self._starting.discard(id)

    def _saver(self, id: str) -> Callable[[Message, bool], Any]:
        async def save(message: Message, finished: bool) -> None:
            copy = message.model_copy(deep=True)

            def replace_message(chat: Chat) -> None:
                places = [place for place, old in enumerate(chat.messages) if old.id == copy.id]
                if not places:
                    raise RequestError("The answer's place in the conversation is gone.", status=409)
                chat.messages[places[0]] = copy

            def keep() -> Chat:
                return self._store.change(id, None, replace_message, count=finished)

            await self._on_disk(keep)

        return save

    def _runs(self, id: str) -> bool:
        return id in self._answers and not self._answers[id].ended

    async def _view(self, chat: Chat) -> dict[str, Any]:
        """What the page needs of a conversation. A running answer comes by itself; one that nobody runs was cut."""
        runs = self._runs(chat.id)
        for message in chat.messages:
            if message.state == "running" and not (runs and message is chat.messages[-1]):
                message.state = "cut"
        messages = await asyncio.get_running_loop().run_in_executor(self._renderer, _messages, chat)
        return {**chat.model_dump(exclude={"messages"}), "running": runs, "messages": messages}

    @staticmethod
    def _prolonged(prepared: Prepared, message: Message) -> Prepared:
        """With the seed of an answer that goes on; past its limit where it was at that."""
        if not message.token_ids:
            return prepared
        params, most = replace(prepared.params, seed=message.seed), prepared.most_tokens
        if message.state == "length":
            drawn = len(message.token_ids)
            most += drawn
            if params.max_tokens is not None:
                params = replace(params, max_tokens=params.max_tokens + drawn)
        return replace(prepared, params=params, most_tokens=most)

    async def _on_disk(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


def _messages(chat: Chat) -> list[dict[str, Any]]:
    """As the page shows them; this takes a while where there is much to colour."""
    return [
        {
            **message.model_dump(exclude={"token_ids"}),
            "resumable": message.resumable,
            "blocks": render(message.content) if message.role == "assistant" else [],
        }
        for message in chat.messages
    ]
