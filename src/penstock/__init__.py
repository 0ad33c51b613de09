"""Penstock: large language models at full BF16 precision on machines with little memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.completion import Output, Piece, Stats
    from penstock.errors import PenstockError
    from penstock.llm import LLM
    from penstock.sampling import SamplingParams
    from penstock.sessions.session import Session

__all__ = ["LLM", "Output", "PenstockError", "Piece", "SamplingParams", "Session", "Stats"]
__version__ = "0.1.0"

_MODULES = {
    "LLM": "llm",
    "Output": "completion",
    "PenstockError": "errors",
    "Piece": "completion",
    "SamplingParams": "sampling",
    "Session": "sessions.session",
    "Stats": "completion",
}


def __getattr__(name: str) -> Any:
    """What is exported comes from its module when it is first asked for: commands that run no model need little."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
