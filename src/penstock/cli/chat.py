"""The chat on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from penstock.cli.show import show
from penstock.errors import ChatTemplateError, ContextError, MemoryCeilingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.cli.show import Display
    from penstock.completion import Piece
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams


def chat(llm: LLM, params: SamplingParams, display: Display, report: Callable[[list[Piece]], None]) -> None:
    """Ask, answer, report, and keep the conversation until Ctrl-D (or Ctrl-C at the prompt). Ctrl-C ends an answer.

    Raises ChatTemplateError where the model has no chat template.
    """
    if not llm.has_chat_template:
        raise ChatTemplateError(
            "This model has no chat template, so there is no chat.", "Give a prompt: penstock run MODEL PROMPT."
        )
    from prompt_toolkit import PromptSession  # 24 MB that only a chat should take
    from prompt_toolkit.history import InMemoryHistory

    session: PromptSession[str] = PromptSession("> ", history=InMemoryHistory())
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = session.prompt()
        except (EOFError, KeyboardInterrupt):
            return
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        try:
            pieces, _ = show(llm, llm.chat_prompt(messages), params, display)
        except (ContextError, MemoryCeilingError) as error:
            print(f"error: {error}", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": "".join(piece.text for piece in pieces)})
        report(pieces)
