"""Packed models to guess with, for the tests of drafters that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cases import Case, random_tokens

from penstock.architectures.base import Architecture
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import F32, Kernels
from penstock.disk.reader import Ring
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import KvCache
from penstock.models.kv_planes import KvShape
from penstock.packing.pack import pack
from penstock.weights.residency import draft_order
from penstock.weights.weights import Weights

# Matrices large enough to be packed, but for keys and values; rows that end amid a group of 64.
PACKABLE = {
    "hidden_size": 280,
    "intermediate_size": 500,
    "vocab_size": 700,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 28,
}
PROMPT = random_tokens(19, 700)


def write_pair(folder: Path, **changes: object) -> tuple[Path, Path]:
    """A checkpoint, and the same one packed."""
    raw = Case(PACKABLE | changes).write(folder / "raw")
    pack(raw, folder / "packed")
    return raw, folder / "packed"


@contextmanager
def open_to_draft(path: Path, resident: float = 0.0) -> Iterator[tuple[Decoder, Weights]]:
    """A model whose weights are kept for guessing first; `resident`: the share of those that may stay in memory, and
    above 1 of what is left."""
    checkpoint, kernels = open_checkpoint(path), Kernels(1)
    config = checkpoint.config
    order = Architecture(config).pass_order
    weights = Weights(
        checkpoint.tensors, order, kernels, Ring(4, 1 << 20), draft_order=draft_order(Architecture(config))
    )
    keep(weights, resident)
    try:
        yield Decoder(config, weights, kernels, weights.vectors()), weights
    finally:
        weights.close()


def keep(weights: Weights, resident: float) -> None:
    left = weights.pass_bytes - weights.draft_bytes
    weights.limit_resident(int(min(1.0, resident) * weights.draft_bytes + max(0.0, resident - 1) * left))


def pass_over(model: Decoder) -> F32:
    """Logits after PROMPT: a pass over all weights, after which those that may are in memory."""
    cache = KvCache(KvShape.of(model.config, "bf16"))
    return model.forward(PROMPT, 0, cache)


def correlation(one: F32, other: F32) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
