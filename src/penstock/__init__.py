"""Penstock: large language models at full BF16 precision on machines with little memory."""

from penstock.completion import Output, Piece, Stats
from penstock.errors import PenstockError
from penstock.llm import LLM
from penstock.sampling import SamplingParams

__all__ = ["LLM", "Output", "PenstockError", "Piece", "SamplingParams", "Stats"]
__version__ = "0.1.0"
