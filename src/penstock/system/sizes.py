"""Sizes as people write and read them."""

from __future__ import annotations

import re

from penstock.errors import UsageError

MIB = 1 << 20
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": MIB, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str | int) -> int:
    """Bytes of a size like "512MiB", "2GiB", "3 GB" or a plain number. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in UNITS:
        raise UsageError(f"{text!r} is not a size.", "Write it like 512MiB or 2GiB.")
    return int(float(match[1]) * UNITS[match[2].lower()])


def format_bytes(count: int) -> str:
    """A size for people, rounded up to whole MiB."""
    return f"{-(-count // MIB)} MiB"
