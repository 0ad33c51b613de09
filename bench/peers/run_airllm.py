"""AirLLM on the CPU, as its README has it, with its own split copy of the weights and its own defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from airllm import AutoModel
from timing import PROMPT, main
from transformers.sequence.streamers import BaseStreamer


class TokenQueue(BaseStreamer):
    """Hands each token on as it is drawn; the prompt, which comes first, is left out. None ends."""

    def __init__(self) -> None:
        self.tokens: Queue[int | None] = Queue()
        self.seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self.seen_prompt:
            self.tokens.put(int(value))
        self.seen_prompt = True

    def end(self) -> None:
        self.tokens.put(None)


def load(model: Path, copy: Path) -> Any:
    return AutoModel.from_pretrained(str(model), device="cpu", layer_shards_saving_path=str(copy))


def prepare(model: Path, copy: Path) -> None:
    load(model, copy)  # splits the checkpoint where there is no split copy yet


def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    torch.set_num_threads(threads)
    llama = load(model, copy)

    def generate(count: int) -> Iterator[int]:
        queue = TokenQueue()
        prompt = torch.tensor([PROMPT])
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "streamer": queue}

        def run() -> None:
            try:
                llama.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **options)
            finally:
                queue.end()

        worker = Thread(target=run)
        worker.start()
        yield from iter(queue.tokens.get, None)
        worker.join()

    return generate


if __name__ == "__main__":
    main("airllm", version("airllm"), prepare, open_copy)
