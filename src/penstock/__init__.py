"""Penstock: large language models at full BF16 precision on machines with little memory."""

from penstock.completion import Output, Piece, Stats
from penstock.errors import PenstockError
from penstock.llm import LLM
from penstock.sampling import SamplingParams
from penstock.sessions.session import Session

__all__ = ["LLM", "Output", "PenstockError", "Piece", "SamplingParams", "Session", "Stats"]
__version__ = "0.1.0"
