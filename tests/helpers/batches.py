"""Files of requests for the tests of `penstock batch`, and what became of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penstock.batch.elsewhere import BenchLike
from penstock.batch.run import BatchSettings, Summary, run
from penstock.batch.watcher import Watcher

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CREATED = 1_700_000_000


def ask(custom_id: str, url: str = TEXT, **body: Any) -> dict[str, Any]:
    """A request for up to 6 tokens, greedily drawn, unless `body` says otherwise."""
    prompt = {} if url == CHAT or "prompt" in body else {"prompt": "def add(a, b):"}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": {"model": "any", "max_tokens": 6, "temperature": 0} | prompt | body,
    }


def mixed() -> list[Any]:
    """Requests that draw, end and fail in all the ways there are; 26 tokens at most, 21 lines."""
    return [
        ask("greedy", max_tokens=20),
        ask("sampled", temperature=1.0, max_tokens=25),
        ask("seeded", temperature=0.8, seed=7, max_tokens=11),
        ask("logprobs", logprobs=2, max_tokens=9, temperature=0.5),
        ask("several", n=2, temperature=1.2, max_tokens=16, logprobs=0),
        ask("stops", stop=["\n", "return"], max_tokens=22),
        ask("prompts", prompt=["import os", "class A:"], max_tokens=13),
        ask("ids", prompt=[5, 17, 99], max_tokens=1),
        b"{not json",
        ask("greedy", max_tokens=3),
        ask("hot", temperature=3),
        {"custom_id": "nowhere", "method": "POST", "url": "/v1/embeddings", "body": {}},
        ask("long", prompt=[7] * 140_000),
        ask("alike", prompt="def add(a, b):", max_tokens=26, temperature=0.7, top_p=0.9),
        b"",
        ask("again", max_tokens=20),
        ask("logprobs too", logprobs=1, n=2, max_tokens=14, temperature=0.9),
        ask("streams", stream=True),
        ask("default", prompt="x = [1, 2,", max_tokens=None, stop="]"),
        ask("last", prompt="for i in", max_tokens=18, temperature=0.6, min_p=0.1),
        ask("chat", CHAT, messages=[{"role": "user", "content": "Write a stack."}], max_tokens=12),
    ]


def write_requests(path: Path, requests: list[Any], created: int = CREATED) -> Path:
    """A file of these objects or lines, last changed at `created`."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in requests]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    os.utime(path, (created, created))
    return path


def run_batch(
    path: Path,
    out: Path,
    watcher: Watcher | None = None,
    benches: Callable[[], Sequence[BenchLike]] | None = None,
    **settings: Any,
) -> Summary:
    """The demo model's answers to the requests in a file; without guesses, so that passes can be counted."""
    chosen = {"model": "demo", "draft": "none", "threads": 1, "max_tokens": 40} | settings
    return run(BatchSettings(source=path, out=out, **chosen), watcher, benches)


def records(out: Path) -> list[dict[str, Any]]:
    """The results."""
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def by_id(out: Path) -> dict[str | None, dict[str, Any]]:
    """The first with each custom_id."""
    return {record["custom_id"]: record for record in reversed(records(out))}


class Ending(Watcher):
    """Ends the work by raising `error` when so many passes are done."""

    def __init__(self, passes: int, error: Callable[[], BaseException]) -> None:
        self._left = passes
        self._error = error

    def passed(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise self._error()
