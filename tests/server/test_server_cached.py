"""What `usage` says of tokens that were there, in memory or on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from helpers.cases import random_tokens
from helpers.serving import MODEL, Serving, serving
from penstock import LLM

PROMPT = random_tokens(150, 2000, seed=3)
WHOLE_BLOCKS = 128
OPTIONS: Any = {"model": MODEL, "temperature": 0, "max_tokens": 3}
CHAT: Any = [{"role": "user", "content": "def add(a, b): return a + b\n" * 20}]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with LLM.open("demo", draft="none", prefix_cache=tmp_path / "cache") as llm, serving(llm) as server:
        yield server


def cached(usage: Any) -> int:
    return usage.prompt_tokens_details.cached_tokens


def ask(client: openai.OpenAI, prompt: Any = PROMPT, **options: Any) -> Any:
    return client.completions.create(prompt=prompt, **OPTIONS | options).usage


def test_from_memory_and_from_the_disk(server: Serving) -> None:
    client = server.client()
    assert [cached(ask(client)) for _ in range(3)] == [0, WHOLE_BLOCKS, WHOLE_BLOCKS]
    server.llm.memory.caches.kept.clear()
    server.llm.chain.settle()
    usage = ask(client)
    assert (usage.prompt_tokens, cached(usage)) == (150, WHOLE_BLOCKS)
    assert server.metric("penstock_cached_prompt_tokens_total") == 3 * WHOLE_BLOCKS


def test_each_prompt_counts_once_and_not_what_its_choices_share(server: Serving) -> None:
    client = server.client()
    assert cached(ask(client, n=3)) == 0
    assert cached(ask(client, n=3)) == WHOLE_BLOCKS
    assert cached(ask(client, [PROMPT, PROMPT[:70]], n=2)) == WHOLE_BLOCKS + 64


def test_streams(server: Serving) -> None:
    client = server.client()
    seen = []
    for _ in range(2):
        with client.chat.completions.create(
            messages=CHAT,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            **OPTIONS,
        ) as stream:
            chunks = list(stream)
        assert cached(chunks[-1].usage) == cached(chunks[-2].usage)
        seen.append(cached(chunks[-1].usage))
    whole = client.chat.completions.create(messages=CHAT, **OPTIONS).usage
    assert seen == [0, cached(whole)]
    assert cached(whole) == (whole.prompt_tokens - 1) // 32 * 32 > 0
