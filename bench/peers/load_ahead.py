"""One file a layer, with a second thread that loads the next layer while this one runs; otherwise load_copy.py.

It takes a further layer's memory. It goes on into the next token, whose first layers don't depend on this one's last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
from load_copy import CopyModel, generator
from one_file_a_layer import Weights, prepare
from timing import main


class AheadModel(CopyModel):
    def __init__(self, model: Path, copy: Path) -> None:
        super().__init__(model, copy)
        head = "embed_tokens" if self.config.get("tie_word_embeddings") else "lm_head"
        self.order = cycle([*(f"layers{index}" for index in range(len(self.cache))), "norm", head])
        self.thread = ThreadPoolExecutor(1)
        self.begin_next()

    def begin_next(self) -> None:
        part = next(self.order)
        self.next: tuple[str, Future[Weights]] = part, self.thread.submit(super().load, part)

    def load(self, part: str) -> Weights:
        loaded, future = self.next
        if loaded != part:
            raise RuntimeError(f"{part} is wanted and {loaded} was loaded")
        weights = future.result()
        self.begin_next()
        return weights


def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    torch.set_num_threads(threads)
    return generator(AheadModel(model, copy))


if __name__ == "__main__":
    main("load-ahead", f"torch {torch.__version__}", prepare, open_copy)
