"""Which model a checkpoint is, told without reading all of it, and whatever form its weights are stored in.

Raw and packed checkpoints of one model give the same logits to the bit, so they count as one: what is looked at are the
original bytes of some rows. Training changes all rows of the matrices that it changes, and mostly the norms as well.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from penstock.architectures.base import Architecture
from penstock.architectures.names import EMBEDDING
from penstock.disk.files import Files
from penstock.errors import ReadError
from penstock.packed_format.tensor import PackedTensor
from penstock.weights.stored_rows import row_reader

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from penstock.architectures.config import ModelConfig
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import U8

ROWS = 2
"""Of each matrix, in its middle; beside each other, since packed rows come by the chunk."""
EMBEDDING_ROWS = 64
"""Spread over all tokens: of an embedding a few rows may change, those of new tokens."""

_LEFT_OUT = {"max_position_embeddings", "bos_token_id", "eos_token_ids"}
"""Parts of a config that change no logit."""
_ROPE = {"kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
"""Parts of a rope that the first sessions have, whatever they are."""


def model_identity(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What makes keys and values those of this model: {"config": {...}, "weights": 32 hexadecimal digits}, for JSON.

    Raises ReadError, FormatError.
    """
    digest, files, passed_over = xxhash.xxh3_128(), Files(), _passed_over(config)
    try:
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype.value} {tuple(tensor.shape)}\n".encode())
            if name not in passed_over:
                digest.update(_sample(tensor, EMBEDDING_ROWS if name == EMBEDDING else ROWS, files).data)
    finally:
        files.close()
    return {"config": _essential(config), "weights": digest.hexdigest()}


def _passed_over(config: ModelConfig) -> frozenset[str]:
    """The matrices of most experts: of each layer the first and the last are looked at. There may be 18,000."""
    architecture = Architecture(config)
    between = (architecture.experts(layer)[1:-1] for layer in range(config.num_hidden_layers))
    return frozenset(name for experts in between for parts in experts for name in parts)


def contents_identity(config: ModelConfig, tensors: Mapping[str, Tensor]) -> bytes:
    """What the bits of keys and values depend on of a model, 32 bytes; stricter than `model_identity`.

    All bytes of packed tensors count, by the checksums of their chunks. Of others those that `model_identity` looks at,
    and the size and the time of the last change of their files; so both forms of a model count as two. Raises
    ReadError, FormatError.
    """
    raw = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, PackedTensor)}
    digest = sha256(json.dumps(model_identity(config, raw), sort_keys=True).encode())
    for path in sorted({tensor.path for tensor in raw.values()}):
        try:
            stat = path.stat()
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror or error}.", "Check the disk and the file.") from error
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for name, tensor in tensors.items():
        if isinstance(tensor, PackedTensor):
            said = f"{name} {tensor.dtype.value} {tensor.shape} {tensor.codec} {tensor.rows_per_chunk}\n"
            digest.update(said.encode())
            digest.update(tensor.coarse_hashes.tobytes() + tensor.fine_hashes.tobytes())
    return digest.digest()


def _essential(config: ModelConfig) -> dict[str, Any]:
    """As the first sessions have it: one word for the biases of all four products of attention, and more only where
    they differ. What a later version adds to a config counts where it is not as it was in every model before."""
    essential = {key: value for key, value in _telling(config).items() if key not in _LEFT_OUT}
    for rope in ("rope", "local_rope"):
        if rope in essential:
            essential[rope] = _telling(getattr(config, rope), _ROPE)
    qkv_bias = essential.pop("qkv_bias")
    essential["attention_bias"] = essential.pop("o_bias")
    essential = essential if qkv_bias == config.o_bias else essential | {"qkv_bias": qkv_bias}
    return dict(json.loads(json.dumps(essential)))


def _telling(config: Any, always: Collection[str] = ()) -> dict[str, Any]:
    """The parts that have no default, or not that; and those in `always`."""
    parts = {part.name: part for part in fields(config)}
    return {
        name: value
        for name, value in asdict(config).items()
        if name in always or parts[name].default is MISSING or getattr(config, name) != parts[name].default
    }


def _sample(tensor: Tensor, count: int, files: Files) -> U8:
    """Some rows as the original checkpoint has them, uint8 [rows, bytes of a row]; a vector is one row."""
    reader = row_reader(tensor, files)
    total = tensor.shape[0] if len(tensor.shape) > 1 else 1
    if count == ROWS:
        rows = np.arange(total // 2, min(total, total // 2 + ROWS))
    else:
        rows = np.unique(np.linspace(0, total - 1, count).astype(np.int64))
    out = np.empty((len(rows), reader.row_bytes), np.uint8)
    for batch in reader.batches(rows):
        reader.read(rows, batch, out)
    return out
