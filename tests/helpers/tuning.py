"""Corrections of small models, for the tests of what uses them."""

from __future__ import annotations

from pathlib import Path

from helpers.cases import random_tokens
from penstock import LLM
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.corrections import Correction
from penstock.options import OpenOptions
from penstock.packed_format.draft_file import identity, write_corrections
from penstock.tuning.tune import listen


def corrections_of(model: Path, tokens: int, seed: int = 5) -> dict[str, Correction]:
    """Of a packed model, fitted to so many random tokens."""
    with LLM(model, OpenOptions(threads=1, draft="none", max_resident=0)) as llm:
        return listen(llm, random_tokens(tokens, llm.config.vocab_size, seed), rank=32)


def tune_to(model: Path, tokens: int) -> dict[str, Correction]:
    """The same, written beside its weights."""
    corrections = corrections_of(model, tokens)
    own = identity(open_checkpoint(model).files)
    assert own is not None
    write_corrections(model, own, corrections)
    return corrections
