"""One file a layer, with a second thread that loads the next layer while this one runs; otherwise one_file_a_layer.py.

`load_file` only maps a file: what reads it is the first use. So the thread copies each tensor, which takes a further
layer's memory. It goes on into the next token, whose first layers don't depend on this one's last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
from one_file_a_layer import Model, Weights, prepare
from safetensors.torch import load_file
from timing import PROMPT, main


class AheadModel(Model):
    def __init__(self, model: Path, copy: Path) -> None:
        super().__init__(model, copy)
        head = "embed_tokens" if self.config.get("tie_word_embeddings") else "lm_head"
        self.order = cycle([*(f"layers{index}" for index in range(len(self.cache))), "norm", head])
        self.thread = ThreadPoolExecutor(1)
        self.next: Future[tuple[str, Weights]] = self.thread.submit(self.read, next(self.order))

    def read(self, part: str) -> tuple[str, Weights]:
        tensors = load_file(self.folder / f"{part}.safetensors")
        return part, {name: weight.to(self.dtype, copy=True) for name, weight in tensors.items()}

    def load(self, part: str) -> Weights:
        loaded, weights = self.next.result()
        if loaded != part:
            raise RuntimeError(f"{part} is wanted and {loaded} was loaded")
        self.next = self.thread.submit(self.read, next(self.order))
        return weights


def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    torch.set_num_threads(threads)
    llama = AheadModel(model, copy)

    @torch.inference_mode()
    def generate(count: int) -> Iterator[int]:
        tokens = list(PROMPT)
        for _ in range(count):
            tokens = [llama.forward(tokens)]
            yield tokens[0]
        llama.thread.shutdown()

    return generate


if __name__ == "__main__":
    main("load-ahead", f"torch {torch.__version__}", prepare, open_copy)
