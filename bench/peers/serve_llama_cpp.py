"""llama.cpp, a GGUF mapped into memory, one turn after another: serve_llama_cpp.py FILE THREADS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice

from llama_cpp import Llama
from turns import Draw, serve

CONTEXT = 1024


def open_model() -> tuple[Draw, type[dict]]:
    threads = int(sys.argv[2])
    options = {"use_mmap": True, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llama = Llama(sys.argv[1], n_ctx=CONTEXT, **options)

    def draw(prompt: list[int], count: int) -> Iterator[int]:
        llama.reset()  # or a prompt that begins like the last one would be cut short
        return islice(llama.generate(prompt, temp=0.0, repeat_penalty=1.0), count)

    return draw, dict


if __name__ == "__main__":
    serve(f"llama-cpp-python {version('llama-cpp-python')}", open_model)
