"""Room for texts while they become tokens: dividing one takes a hundred times its bytes, and more.

Either room is made when a text comes, by giving weights back, or room for texts up to some length is kept at all times;
then threads beside the engine's, which alone may touch the weights, can divide texts too.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.errors import MemoryCeilingError
from penstock.system import machine
from penstock.system.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BYTES_TO_TOKENIZE = 416
"""What a byte of UTF-8 may take while its text becomes a list of token ids: 400 where every character is a word of its
own, 165 for prose; and copies of the text."""
LONG_TEXT = 1 << 14
"""Bytes of a text that the ceiling's allowance has no room for."""


class TextRoom:
    """What `Tokenizer.room` is while a model is open, or where there is room in any case."""

    def __init__(self, make_room: Callable[[int], None] | None = None, *, kept: int = 0) -> None:
        """`make_room`: makes room for so many bytes beside everything that is there; without it there is room at all
        times for texts of `kept` bytes at most."""
        self._make_room = make_room
        self._kept = kept

    @contextmanager
    def __call__(self, nbytes: int) -> Iterator[None]:
        """Room for a text of so many bytes, as long as the context lasts. Raises MemoryCeilingError."""
        if nbytes <= LONG_TEXT:
            yield
            return
        self._make(nbytes)
        try:
            yield
        finally:
            machine.trim_heap()

    def _make(self, nbytes: int) -> None:
        if self._make_room is not None:
            self._make_room(BYTES_TO_TOKENIZE * nbytes)
        elif nbytes > self._kept:
            missing = BYTES_TO_TOKENIZE * (nbytes - self._kept)
            raise MemoryCeilingError(
                f"A text of {nbytes:,} bytes is too long to become tokens; room is kept for {self._kept:,} bytes.",
                f"Shorten it, or give {format_bytes(missing)} more for longer texts: --max-body, and --memory.",
            )
