"""One file a layer, each copied into memory whole before it runs, as whoever times the loading has it; otherwise
one_file_a_layer.py, which runs from the mapping that `load_file` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from one_file_a_layer import Model, Weights, prepare
from safetensors.torch import load_file
from timing import PROMPT, main


class CopyModel(Model):
    def load(self, part: str) -> Weights:
        tensors = load_file(self.folder / f"{part}.safetensors")
        return {name: weight.to(self.dtype, copy=True) for name, weight in tensors.items()}


def generator(llama: Model) -> Callable[[int], Iterator[int]]:
    """Draws tokens greedily after the prompt."""

    @torch.inference_mode()
    def generate(count: int) -> Iterator[int]:
        tokens = list(PROMPT)
        for _ in range(count):
            tokens = [llama.forward(tokens)]
            yield tokens[0]

    return generate


def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    torch.set_num_threads(threads)
    return generator(CopyModel(model, copy))


if __name__ == "__main__":
    main("load-copy", f"torch {torch.__version__}", prepare, open_copy)
