"""Sizes as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal

from penstock.errors import UsageError

MIB = 1 << 20
_PREFIXES = "kmgt"
UNITS = {"": 1, "b": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate(_PREFIXES, 1)
    for ending, base in (("", 1024), ("i", 1024), ("ib", 1024), ("b", 1000))
}
"""Bytes of each unit, in lower case. A letter alone is a power of 1024, as `ulimit`, control groups and containers have
it; "GB" is 10**9 bytes, as disks have it."""
_EXAMPLES = "Write it like 512MiB, 3G (the same as 3GiB), 2.5 GiB or 3GB (10**9 bytes each)."


def parse_bytes(text: str | int) -> int:
    """Bytes of a size like "512MiB", "3G", "2.5 gib", "3 GB" or a plain number, rounded down. Raises UsageError."""
    said, shown = str(text), repr(text[:100] if isinstance(text, str) else text)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", said, re.ASCII)
    if match is None:
        raise UsageError(f"{shown} is not a size.", _EXAMPLES)
    if match[2].lower() not in UNITS:
        raise UsageError(f"{shown} is not a size: there is no unit {match[2][:20]!r}.", _EXAMPLES)
    return int(Decimal(match[1]) * UNITS[match[2].lower()])


def parse_rate(text: str) -> int:
    """Bytes a second, of a size like "524MB", or of bits like "1Gbit" (10**9); "/s" may follow. Raises UsageError."""
    said = text.strip().removesuffix("/s").rstrip()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)bit", said, re.ASCII | re.IGNORECASE)
    if match is not None:
        return int(Decimal(match[1]) * 1000 ** (" " + _PREFIXES).index(match[2].lower() or " ")) // 8
    try:
        return parse_bytes(said)
    except UsageError as error:
        raise UsageError(
            f"{text[:100]!r} is no speed.", "Write it like 524MB or 2GB a second, 1Gbit or 100Mbit."
        ) from error


def format_bytes(count: int) -> str:
    """A size for people, rounded up to whole MiB."""
    return f"{-(-count // MIB)} MiB"
