"""How likely a drawn token was, and which others were: of the model's own distribution, before temperature and filters.

They are told, and nothing is computed from them, so they may differ in the last bits from one CPU to another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.compute.kernels import F32

_LIKELY = struct.Struct("=Id")
_OBJECT_BYTES = 160
"""Of one TokenLogprobs with its numbers and its place in a list."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities."""

    token: int
    logprob: float
    packed: bytes
    """`top` in 12 bytes a token, where objects would take more than a hundred."""

    @classmethod
    def of(cls, token: int, logprob: float, top: Iterable[tuple[int, float]]) -> TokenLogprobs:
        return cls(token, logprob, b"".join(_LIKELY.pack(*likely) for likely in top))

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The likeliest tokens, the likeliest first."""
        return tuple(_LIKELY.iter_unpack(self.packed))


def logprobs_bytes(top: int | None) -> int:
    """What a token's take with so many of the likeliest; None: with none at all, not even its own."""
    return 0 if top is None else _OBJECT_BYTES + top * _LIKELY.size


def token_logprobs(logits: F32, token: int, top: int) -> TokenLogprobs:
    """Of `token` and of the `top` likeliest, from logits float32 [vocab_size]."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    likeliest = np.argsort(-logits, kind="stable")[:top]
    return TokenLogprobs.of(token, float(scores[token]), ((int(i), float(scores[i])) for i in likeliest))
