"""The standard streams: UTF-8 on all systems."""

from __future__ import annotations

import io
from typing import TextIO


def speak_utf8(*streams: TextIO | None) -> None:
    """Have pipes and files among these streams be UTF-8, whatever the system takes for text; terminals know by
    themselves.

    Python does so on Windows from 3.15 on (PEP 686). Before, it takes the code page there, which has no room for most
    of what a model may say.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
