"""What lines of a batch may take while they become requests, under a ceiling on the process."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from penstock.batch.requests import MOST_LINE_BYTES
from penstock.options import OpenOptions
from penstock.system import machine

Options = TypeVar("Options", bound=OpenOptions)

STATE_BYTES = 8 << 20
"""What the database may take, and results that are put together."""
BYTES_TO_PARSE = 104
"""What a byte of a line may take while it becomes a request; its text has room made for it then."""
LEAST_LINE_BYTES, LINE_SHARE = 64 << 10, 3072
"""A line may have this part of the ceiling, or so many bytes."""


def most_line_bytes(ceiling: int | None) -> int:
    """The longest line that becomes tokens under a ceiling on the process; None for what the machine has free."""
    ceiling = machine.available_bytes() if ceiling is None else ceiling
    return min(max(ceiling // LINE_SHARE, LEAST_LINE_BYTES), MOST_LINE_BYTES)


def with_room(options: Options, longest_line: int) -> Options:
    """Options that leave room for a line of so many bytes, and for the state."""
    return replace(options, reserve=STATE_BYTES + BYTES_TO_PARSE * longest_line)
