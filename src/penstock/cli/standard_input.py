"""Text from standard input or a file, of which no more is kept than can be of use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penstock.errors import MemoryCeilingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

CHARACTERS_AT_ONCE = 1 << 16
MOST_COUNTED = 1 << 28
"""Characters that are counted of a text for which there is no room, so as to say how much room it needs."""


def read_text(check_length: Callable[[int], None], file: TextIO | None = None) -> str:
    """All that comes, by default on standard input. `check_length` is told how many characters there are, as they come,
    and may raise.

    After a MemoryCeilingError they are counted only, until there are no more, or too many for another reason.
    """
    parts, characters = [], 0
    refused: MemoryCeilingError | None = None
    file = file or sys.stdin
    while part := file.read(CHARACTERS_AT_ONCE):
        characters += len(part)
        try:
            check_length(characters)
            parts.append(part)
        except MemoryCeilingError as error:
            refused = error
            parts.clear()
            if characters > MOST_COUNTED:
                break
    if refused is not None:
        raise refused
    return "".join(parts)
