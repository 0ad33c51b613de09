"""Log probabilities in the two forms that OpenAI's API has for them. Those of many tokens take much more than these,
so their lists are made piece by piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.openai_api.json_parts import Series
from penstock.openai_api.token_text import token_bytes, token_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.logprobs import TokenLogprobs
    from penstock.text.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer | None, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """As chat completions have them: an object for each token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        nbytes = token_bytes(tokenizer, token)
        return {"token": token_text(nbytes), "logprob": logprob, "bytes": list(nbytes)}

    def content() -> Iterator[dict[str, Any]]:
        for t in tokens:
            yield entry(t.token, t.logprob) | {"top_logprobs": [entry(token, logprob) for token, logprob in t.top]}

    return {"content": Series(content), "refusal": None}


def text_logprobs(tokenizer: Tokenizer | None, tokens: Sequence[TokenLogprobs], offset: int = 0) -> dict[str, Any]:
    """As completions have them: parallel lists. `offset`: characters of the answer before the first of these tokens."""
    texts, offsets = [], []
    for t in tokens:
        nbytes = token_bytes(tokenizer, t.token)
        texts.append(token_text(nbytes))
        offsets.append(offset)
        offset += len(nbytes.decode(errors="ignore"))

    def tops() -> Iterator[dict[str, float]]:
        for t in tokens:
            likely = (*t.top, (t.token, t.logprob))
            yield {token_text(token_bytes(tokenizer, token)): logprob for token, logprob in likely}

    return {
        "tokens": texts,
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": Series(tops),
        "text_offset": offsets,
    }
