"""Seconds and bytes as people read them."""

from __future__ import annotations


def format_seconds(seconds: float) -> str:
    """Three digits or so: "22.5 s", "1.25 s", "0.125 s", "12.50 ms"."""
    if seconds < 0.1:
        return f"{seconds * 1e3:.2f} ms"
    digits = 1 if seconds >= 10 else 2 if seconds >= 1 else 3
    return f"{seconds:.{digits}f} s"


def format_size(nbytes: float) -> str:
    """Decimal units, as disks have them: "15.01 GB", "250.0 MB"."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def format_rate(nbytes: float, seconds: float) -> str:
    """Bytes a second: "0.52 GB/s"."""
    return f"{nbytes / max(seconds, 1e-9) / 1e9:.2f} GB/s"
