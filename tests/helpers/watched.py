"""A tokenizer's backend that notes what it is given to divide."""

from __future__ import annotations

from typing import Any

import tokenizers

from penstock.text.tokenizer import Tokenizer


class Watched:
    """In place of the library's object: everything is as there, and `divided` has the lengths of all texts."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.divided: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, text: str, **options: Any) -> Any:
        self.divided.append(len(text))
        return self._backend.encode(text, **options)


def watch(tokenizer: Tokenizer | None) -> Watched:
    """Watch what a tokenizer divides from now on."""
    assert tokenizer is not None
    watched = Watched(tokenizer._backend)
    tokenizer._backend = watched
    return watched
