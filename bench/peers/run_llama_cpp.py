"""llama.cpp through llama-cpp-python: a BF16 GGUF, mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from gguf_file import write_gguf
from llama_cpp import Llama
from timing import PROMPT, main

FILE = "model.gguf"


def prepare(model: Path, copy: Path) -> None:
    write_gguf(model, copy / FILE)


def open_copy(_: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
    options = {"use_mmap": True, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llama = Llama(str(copy / FILE), n_ctx=512, **options)

    def generate(count: int) -> Iterator[int]:
        return islice(llama.generate(list(PROMPT), temp=0.0, repeat_penalty=1.0), count)

    return generate


if __name__ == "__main__":
    main("llama.cpp", f"llama-cpp-python {version('llama-cpp-python')}", prepare, open_copy)
