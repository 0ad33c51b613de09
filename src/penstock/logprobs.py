"""How likely a drawn token was, and which others were: of the model's own distribution, before temperature and filters.

Of the same logits they have the same bits on every CPU, drawn or scored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.compute.log_sum_exp import log_sum_exp
from penstock.models.scores import likeliest

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
    whole = log_sum_exp(logits)
    likely = likeliest(logits, top) if top else ()
    return TokenLogprobs.of(token, float(logits[token]) - whole, ((int(i), float(logits[i]) - whole) for i in likely))
