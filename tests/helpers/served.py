"""What tests of clients know of the server that they ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """What clients have to know of a server."""

    model: str
    url: str
    """Of its OpenAI API."""
