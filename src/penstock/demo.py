"""The two minutes that convince: what `penstock demo` does, step by step; how it looks is cli/demo.py's.

One step so far: text from a model most of whose weights stay on the disk, and the same bits from a resident run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.llm import LLM, Options
from penstock.sampling import SamplingParams
from penstock.store import DEMO, find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.completion import Piece
    from penstock.kernels import F32

PROMPT = '''class Point:
    """A point in the plane."""

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return'''
PARAMS = SamplingParams(temperature=0.6, seed=4, max_tokens=96)
STREAMED, RESIDENT = 0.2, 1.0
"""Shares of the weights that the two runs may keep in memory."""


@dataclass(frozen=True)
class Run:
    """A completion of PROMPT, and the logits after each of its tokens, float32 [n_tokens, vocab_size]."""

    pieces: list[Piece]
    logits: F32

    @property
    def token_ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.token_ids]

    def same_bits(self, other: Run) -> bool:
        """Whether the tokens, and every bit of every logit, are equal."""
        return self.token_ids == other.token_ids and self.logits.tobytes() == other.logits.tobytes()


def complete(resident_share: float, on_piece: Callable[[Piece], None]) -> Run:
    """Complete PROMPT with at most this share of the demo model's weights in memory, the rest read in every pass."""
    path = find_model(DEMO)
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    with LLM(path, Options(max_resident=int(weights * resident_share))) as llm:
        pieces = []
        for piece in llm.stream(PROMPT, PARAMS):
            on_piece(piece)
            pieces.append(piece)
        tokens = [token for piece in pieces for token in piece.token_ids]
        return Run(pieces, llm.logits(llm.encode(PROMPT) + tokens))
