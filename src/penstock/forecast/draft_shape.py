"""A draft model as far as planning needs it: what it would take in memory, whether it is here or only its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.architectures.base import Architecture
from penstock.compute.levels import nibble_bytes
from penstock.errors import UsageError
from penstock.models.kv_planes import KvShape
from penstock.speculate.draft_model import LOADING, DraftModel
from penstock.weights.sizes import pass_matrices, raw_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from penstock.architectures.config import ModelConfig
    from penstock.compute.kernels import Kernels
    from penstock.speculate.draft_model import Form


@dataclass(frozen=True, slots=True)
class DraftShape:
    """A draft model as far as planning needs it."""

    name: str
    architecture: Architecture
    likely_bytes: Mapping[Form, int]
    """What it takes in memory."""
    kv_shape: KvShape


def draft_here(
    name: str, path: Path, config: ModelConfig, target: Path | None, kernels: Kernels, kv_dtype: str
) -> DraftShape:
    """A draft model on this machine, for a target with this config, and at `target` where that is here too.

    Raises CheckpointError and its kin, and UsageError where the target has other tokens.
    """
    draft = DraftModel(path, kernels, kv_dtype)
    try:
        if target is not None:
            draft.check_tokens_of(target, config)
        _check_vocabulary(name, draft.config, config)
        likely: dict[Form, int] = {"whole": draft.likely_bytes("whole"), "4 bits": draft.likely_bytes("4 bits")}
        return DraftShape(name, Architecture(draft.config), likely, draft.kv_shape)
    finally:
        draft.close()


def draft_ahead(name: str, config: ModelConfig, target: ModelConfig, kv_dtype: str) -> DraftShape:
    """A draft model of which only the config is known, in BF16. Raises UsageError."""
    _check_vocabulary(name, config, target)
    matrices = pass_matrices(config)
    nibbles = sum(nibble_bytes(matrix.shape[0], matrix.shape[1]) for matrix in matrices)
    likely: dict[Form, int] = {"whole": raw_size(matrices).nbytes + LOADING.nbytes, "4 bits": nibbles + LOADING.nbytes}
    return DraftShape(name, Architecture(config), likely, KvShape.of(config, kv_dtype))


def _check_vocabulary(name: str, config: ModelConfig, target: ModelConfig) -> None:
    if config.vocab_size != target.vocab_size:
        raise UsageError(
            f"The draft {name} has a vocabulary of {config.vocab_size} tokens, and the model has {target.vocab_size}.",
            "A draft has to have the target's tokenizer: give a smaller model of the same family.",
        )
