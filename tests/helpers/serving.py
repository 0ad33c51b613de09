"""A real server on a free port of this machine, in a thread, and an engine that can be made to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from penstock import LLM
from penstock.events import Event
from penstock.server.run import chats_folder, listen, server, url
from penstock.server.settings import Settings
from penstock.server.shelf import Shelf
from penstock.server.worker import Worker

MODEL = "demo"
PATIENCE = 60.0
"""Seconds after which a test gives up."""


@dataclass
class Serving:
    """What a test needs to know of a running server."""

    url: str
    worker: Worker

    @property
    def llm(self) -> LLM:
        """The model that is open."""
        llm = self.worker.shelf.llm
        assert llm is not None
        return llm

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
        )

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **options)

    def metric(self, name: str) -> float:
        """A number of /metrics, by its name and labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


@contextmanager
def serving(llm: LLM, **settings: Any) -> Iterator[Serving]:
    """Serve an open model for as long as the context lasts."""
    with serving_shelf(Shelf.holding(MODEL, llm), **settings) as running:
        yield running


@contextmanager
def serving_shelf(shelf: Shelf, **settings: Any) -> Iterator[Serving]:
    """Serve the models of a shelf for as long as the context lasts."""
    ready = threading.Event()
    chosen = Settings(**{"max_body": 1 << 20, "queue_tokens": 1 << 20, **settings})
    with listen("127.0.0.1", 0) as listening, chats_folder(chosen) as chats:
        address = url(listening)
        running, worker = server(shelf, chosen, chats, ready.set)
        worker.start()
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            yield Serving(address, worker)
        finally:
            running.should_exit = True
            thread.join()
            worker.close(wait=True)


def opened(shelf: Shelf, name: str) -> LLM:
    """One of a shelf's models, opened in place of another."""
    return shelf.open(name, lambda *_: None)


class Brake:
    """Holds the engine at the end of a layer, while it is set."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._go.set()
        self.holds = threading.Event()
        """The engine waits."""

    def __call__(self, event: Event) -> None:
        if event.kind == "part" and not self._go.is_set():
            self.holds.set()
            assert self._go.wait(PATIENCE)

    def set(self) -> None:
        self.holds.clear()
        self._go.clear()

    def release(self) -> None:
        self._go.set()


@contextmanager
def braked(llm: LLM) -> Iterator[Brake]:
    """A brake that is set from the beginning, and released in the end."""
    brake = Brake()
    brake.set()
    llm.events.listeners.append(brake)
    try:
        yield brake
    finally:
        brake.release()
        llm.events.listeners.remove(brake)


def eventually(condition: Any) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
