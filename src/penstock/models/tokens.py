"""Token ids as callers give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import ContextError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Raise UsageError unless there are tokens and a model with so many has all of them."""
    if not len(tokens):
        raise UsageError("The prompt has no tokens.", "Give some text, or at least one token id.")
    if not all(isinstance(token, (int, np.integer)) for token in tokens):
        raise UsageError("A prompt of token ids has something else in it.", "Give integers, or text as one string.")
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise UsageError(f"Token id {wrong} is not in the model's vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")


def check_prompt(tokens: Sequence[int], vocab_size: int, context: int) -> None:
    """As `check_tokens`; ContextError besides where a sequence of at most `context` positions has no room for them and
    an answer."""
    check_tokens(tokens, vocab_size)
    if len(tokens) >= context:
        raise ContextError(
            f"The prompt has {len(tokens)} tokens; a context of {context} has no room for it and an answer.",
            "Shorten the prompt, or raise --context (up to what the model was trained for).",
        )
