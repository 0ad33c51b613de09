"""What a server was told, and the memory that it takes beside the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.openai_api.answers import DEFAULT_MAX_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
LEAST_BODY, MOST_BODY, BODY_SHARE = 32 * KIB, 4 * MIB, 16384
"""The longest body is this part of the memory ceiling by default."""
BODIES = 4
"""So many of the longest bodies may be in memory at once; one of them is parsed and tokenized at a time."""
TOKEN_BYTES, QUEUE_SHARE = 4, 64
"""Token ids that wait for the engine may take this part of the ceiling."""
CONNECTION_BYTES = 96 * KIB
"""Of a connection with a request: buffers, objects."""
PAGE_BYTES = 16 * MIB
"""Of the chat page: a conversation that is shown, and what colours code."""
MOST_SEQUENCES = 64
"""Requests join the engine as long as fewer sequences than this run in it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve models."""

    max_body: int
    """The longest request body, bytes."""
    queue_tokens: int
    """Most tokens of all prompts that wait."""
    queue: int = 100
    """Most requests that wait for their turn."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """For requests that name no limit."""
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    """Pages from there, like https://app.example, may use the server from a browser."""
    chats: Path | None = None
    """The folder of the chat page's conversations; without one, they are gone when the server ends."""
    loopback: bool = True
    """Whether only this machine can reach it."""
    keep_alive_seconds: float = 1.0
    """Between two signs of life, while an answer is on its way."""
    patience_seconds: float = 10.0
    """A whole answer that takes longer begins with white space."""
    body_seconds: float = 60.0
    """What a client may take to send a body, and to take what was sent to it."""

    @property
    def connections(self) -> int:
        """Most connections: for those requests that run and wait, and for as many that ask how it is."""
        return self.queue + 2 * MOST_SEQUENCES

    @property
    def reserve(self) -> int:
        """Bytes that requests may take beside the model, but for the one that is being tokenized: arriving, waiting."""
        requests = BODIES * self.max_body + self.queue_tokens * TOKEN_BYTES
        return requests + self.connections * CONNECTION_BYTES + PAGE_BYTES


def default_body(ceiling: int) -> int:
    """The longest body under a ceiling on the process, bytes."""
    return min(max(ceiling // BODY_SHARE, LEAST_BODY), MOST_BODY)


def queue_tokens(ceiling: int, queue: int, max_body: int) -> int:
    """Most tokens that may wait: no body has more of them than bytes."""
    return min(queue * max_body, max(ceiling // QUEUE_SHARE // TOKEN_BYTES, max_body))
