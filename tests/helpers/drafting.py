"""Packed models to guess with, for the tests of drafters that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from helpers.cases import Case, random_tokens
from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import F32, Kernels
from penstock.disk.reader import Ring
from penstock.models.chain import Chain
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import Blocks, KvCache
from penstock.models.stage import Need, Share, Stage
from penstock.packing.pack import pack
from penstock.speculate.coarse import CoarseDrafter
from penstock.stages.opening import decoder_of
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
def open_to_draft(path: Path, resident: float = 0.0, piece_bytes: int = 1 << 20) -> Iterator[tuple[Decoder, Weights]]:
    """A model whose weights are kept for guessing first; `resident`: the share of those that may stay in memory, and
    above 1 of what is left."""
    checkpoint, kernels = open_checkpoint(path), Kernels(1)
    architecture = Architecture(checkpoint.config)
    order, drafts = architecture.pass_order, draft_order(architecture)
    weights = Weights(checkpoint.tensors, order, kernels, Ring(4, piece_bytes), draft_order=drafts)
    keep(weights, resident)
    try:
        yield decoder_of(checkpoint, everything(checkpoint.config), weights, kernels, Blocks(), "bf16"), weights
    finally:
        weights.close()


def keep(weights: Weights, resident: float) -> None:
    left = weights.pass_bytes - weights.draft_bytes
    weights.limit_resident(int(min(1.0, resident) * weights.draft_bytes + max(0.0, resident - 1) * left))


def pass_over(model: Decoder) -> F32:
    """Logits after PROMPT: a pass over all weights, after which those that may are in memory."""
    return model.forward(PROMPT, 0, new_cache(model))


def everything(config: ModelConfig) -> Share:
    """All of a model."""
    return Share(tuple(range(config.num_hidden_layers)))


def new_cache(model: Decoder) -> KvCache:
    """An empty one, whose keys and values are the model's."""
    return KvCache(model.planes.outbox.blocks)


class Unlimited:
    """Memory that nobody shares out."""

    def make(self, need: Need) -> None:
        pass

    def relieve(self) -> None:
        pass


def coarse_drafter(model: Decoder, weights: Weights) -> CoarseDrafter:
    """The model as its own drafter, all of it in one stage."""
    config = model.config
    stage = Stage(model, weights, everything(config), Unlimited())
    blocks = model.planes.outbox.blocks
    return CoarseDrafter(Chain([stage], config.num_hidden_layers, config.vocab_size, blocks, weights.events), [stage])


def correlation(one: F32, other: F32) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
