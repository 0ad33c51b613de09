"""A prompt as the beginning of its answers, with the probabilities of its tokens where these are asked for.

They are scored beside what is drawn after them, in the same passes; both share the prompt's keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.openai_api.json_parts import Series
from penstock.openai_api.token_text import token_bytes, token_text

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from penstock.engine.scoring import ScoredSequence
    from penstock.errors import PenstockError
    from penstock.llm import LLM
    from penstock.text.tokenizer import Tokenizer


class Echo:
    """One prompt of a request."""

    def __init__(self, llm: LLM, prompt: array[int], top: int | None, adapter: str | None) -> None:
        """`top`: how many of the likeliest tokens to tell beside each; None: no probabilities. The prompt takes part in
        passes from now on. Raises as `Engine.score` does."""
        self._llm: LLM | None = llm
        self._tokenizer, self._prompt, self._top = llm.tokenizer, prompt, top
        self._sequence: ScoredSequence | None = None
        if top is not None and len(prompt) > 1:
            self._sequence = llm.engine.score(prompt, 1, top, adapter)

    @property
    def runs(self) -> bool:
        """Whether anything is left to compute."""
        return self._sequence is not None and self._sequence.finish_reason is None

    @property
    def error(self) -> PenstockError | None:
        """Why it could not be scored."""
        return None if self._sequence is None else self._sequence.error

    def cancel(self) -> None:
        """End it, and free its memory. What it came to does not need the model any more."""
        llm, self._llm = self._llm, None
        if llm is not None and self._sequence is not None:
            llm.engine.cancel(self._sequence)

    @property
    def text(self) -> str:
        """The prompt, without special tokens; empty where there is no tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.decode(self._prompt)

    def before(self, logprobs: dict[str, Any]) -> dict[str, Any]:
        """The lists of completions (logprobs.py), with the prompt's tokens before those of the answer. What the first
        token follows is nothing, so it has no probability."""
        tokenizer, scored = self._tokenizer, self._sequence.scored if self._sequence is not None else None
        texts, offsets, offset = [], [], 0
        for token in self._prompt:
            nbytes = token_bytes(tokenizer, token)
            texts.append(token_text(nbytes))
            offsets.append(offset)
            offset += 0 if _is_special(tokenizer, token) else len(nbytes.decode(errors="ignore"))

        def tops() -> Iterator[dict[str, float] | None]:
            yield None
            if scored is not None:
                for row, (token, logprob) in enumerate(zip(self._prompt[1:], scored.logprobs.tolist(), strict=True)):
                    likely = zip(scored.top_tokens[row].tolist(), scored.top_logprobs[row].tolist(), strict=True)
                    pairs = (*likely, (token, logprob))
                    yield {token_text(token_bytes(tokenizer, token)): logprob for token, logprob in pairs}
            yield from logprobs["top_logprobs"].items()

        told = [] if scored is None else scored.logprobs.tolist()
        return {
            "tokens": texts + logprobs["tokens"],
            "token_logprobs": [None, *told, *logprobs["token_logprobs"]],
            "top_logprobs": Series(tops),
            "text_offset": offsets + logprobs["text_offset"],
        }


def _is_special(tokenizer: Tokenizer | None, token: int) -> bool:
    """Whether texts have nothing of it."""
    return tokenizer is None or not tokenizer.decode([token])
