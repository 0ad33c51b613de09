"""How likely a drawn token was, and which others were: of the model's own distribution, before temperature and filters.

They are told, and nothing is computed from them, so they may differ in the last bits from one CPU to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.compute.kernels import F32


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens, the likeliest first."""


def token_logprobs(logits: F32, token: int, top: int) -> TokenLogprobs:
    """Of `token` and of the `top` likeliest, from logits float32 [vocab_size]."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    likeliest = np.argsort(-logits, kind="stable")[:top]
    return TokenLogprobs(token, float(scores[token]), tuple((int(i), float(scores[i])) for i in likeliest))
