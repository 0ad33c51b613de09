"""Models in packed files that any writer might have made, and all that Penstock does with them held to the raw ones.

A seed stands for a model: its shape, types, layout, which of its files are packed, and every choice of the format.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.checkpoint_checks import INDEX
from helpers.checkpoints import Tensors, as_dtype, tensor_shapes, tiny_config, write_checkpoint
from helpers.drafting import everything, new_cache
from helpers.free_encoder import Choices, pack_freely
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import F32, Kernels
from penstock.disk.reader import Ring
from penstock.errors import CheckpointWarning, UsageError
from penstock.forecast.guess_plan import tiers_here
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import Blocks
from penstock.packing.pack import pack
from penstock.packing.unpack import unpack
from penstock.packing.verify import verify
from penstock.speculate.draft_model import NibbleWeights
from penstock.stages.opening import decoder_of
from penstock.weights.identity import model_identity
from penstock.weights.residency import draft_order
from penstock.weights.sizes import size_here
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

GREEDY = SamplingParams(temperature=0, max_tokens=4)
LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"layout": "indexed"},
    {"layout": "numbered"},
    {"layout": "split"},
    {"layout": "split", "names": "bare"},
)


@dataclass(frozen=True)
class FreeModel:
    """The same model twice: `packed` has some files packed freely, and the others as they are."""

    raw: Path
    packed: Path
    n_packed: int
    """Files of `packed` that are packed; of all that there are:"""
    n_files: int

    @property
    def vocab_size(self) -> int:
        return int(json.loads((self.raw / "config.json").read_text())["vocab_size"])


def _shape(rng: np.random.Generator, long_rows: bool) -> dict[str, int]:
    """Few rows, so that Python encodes them in seconds. `long_rows`: too long for the format."""

    def between(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    heads, head_dim = between(1, 3), 2 * between(1, 30)
    attention = {"num_key_value_heads": heads, "head_dim": head_dim, "num_attention_heads": heads * between(1, 2)}
    if long_rows:
        sizes = {"hidden_size": between(262_145, 264_000), "intermediate_size": between(1, 3), "vocab_size": 3}
        return sizes | {"num_key_value_heads": 1, "head_dim": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
    if rng.random() < 0.3:
        sizes = {
            "hidden_size": between(256, 300),
            "intermediate_size": between(256, 400),
            "vocab_size": between(3, 300),
        }
        return sizes | attention | {"num_hidden_layers": 1}
    sizes = {"hidden_size": between(600, 1500), "intermediate_size": between(40, 140), "vocab_size": between(40, 140)}
    return sizes | attention | {"num_hidden_layers": between(1, 2)}


def _tensors(config: dict[str, Any], rng: np.random.Generator) -> Tensors:
    """Mostly BF16; each matrix with a scale a row, and a few weights of any size that keeps sums finite."""
    mixed, tensors = rng.random() < 0.3, {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.float32(shape[-1]))
        if len(shape) > 1:
            values *= np.exp2(rng.integers(-2, 3, (shape[0], 1))).astype(np.float32)
            values[rng.random(shape) < rng.choice([0, 0.001, 0.05])] *= np.float32(2.0 ** rng.integers(-100, 3))
        elif "norm" in name:
            values += 1
        tensors[name] = as_dtype(values, str(rng.choice(["BF16", "F16", "F32"])) if mixed else "BF16")
    return tensors


def write_model(folder: Path, seed: int) -> FreeModel:
    """Write both forms of a model below `folder`; every sixth has rows that are too long for the format."""
    rng, long_rows = np.random.default_rng(seed), seed % 6 == 5
    flags = {key: bool(rng.random() < 0.4) for key in ("tie_word_embeddings", "attention_bias", "mlp_bias")}
    config = tiny_config(**_shape(rng, long_rows), **flags)
    raw, packed = folder / "raw", folder / "packed"
    write_checkpoint(raw, config, tensors=_tensors(config, rng), **LAYOUTS[rng.integers(len(LAYOUTS))])
    files = sorted(path.relative_to(raw) for path in raw.rglob("*") if path.is_file())
    weights = [file for file in files if file.suffix == ".safetensors"]
    share, n_packed = float(rng.choice([0.5, 1.0, 1.0])), 0
    choices = Choices(rng, least_chunk_bytes=int(rng.choice([1000, 100_000])) if long_rows else 64)
    for file in files:
        (packed / file).parent.mkdir(parents=True, exist_ok=True)
        if file in weights and (rng.random() < share or file == weights[0]):
            pack_freely((raw / file).read_bytes(), packed / file, choices)
            n_packed += 1
        else:
            shutil.copyfile(raw / file, packed / file)
    if (packed / INDEX).exists():
        (packed / INDEX).rename(packed / f"original.{INDEX}")
        (packed / INDEX).write_text(json.dumps({"weight_map": _places(packed)}))
    return FreeModel(raw, packed, n_packed, len(weights))


def _places(folder: Path) -> dict[str, str]:
    """Where each stream is, and each tensor of what is not packed."""
    places: dict[str, str] = {}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        places |= {name: path.name for name in names if not name.startswith(("__", "penstock."))}
    return places


@contextmanager
def opened(path: Path, kernels: Kernels, piece_bytes: int = 1 << 20) -> Iterator[tuple[Decoder, Weights]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        checkpoint = open_checkpoint(path)
    order, ring = Architecture(checkpoint.config).pass_order, Ring(4, piece_bytes)
    weights = Weights(checkpoint.tensors, order, kernels, ring, draft_order=draft_order(checkpoint.architecture))
    try:
        yield decoder_of(checkpoint, everything(checkpoint.config), weights, kernels, Blocks(), "bf16"), weights
    finally:
        weights.close()


def logits(model: Decoder) -> F32:
    """Of two rows, of one, and of many: the kernels differ."""
    cache = new_cache(model)
    tokens, done, parts = np.arange(12) % model.config.vocab_size, 0, []
    for count in (2, 1, 9):
        parts.append(model.forward(tokens[done : done + count].tolist(), done, cache))
        done += count
    return np.concatenate(parts)


def passes(path: Path, kernels: Kernels, piece_bytes: int) -> Iterator[F32]:
    """Logits with weights streamed, half in memory, all of them as they are stored, and all in indexed rows."""
    with opened(path, kernels, piece_bytes) as (model, weights):
        indexed = weights.indexed_bytes
        for resident in (0, weights.pass_bytes // 2, weights.pass_bytes):
            weights.indexed_bytes = 0
            weights.limit_resident(resident)
            yield logits(model)
            yield logits(model)
        if indexed:
            weights.indexed_bytes = indexed
            weights.limit_resident(2 * indexed + (1 << 20))
            yield logits(model)
            yield logits(model)


def _in_nibbles(path: Path, kernels: Kernels) -> F32:
    with opened(path, kernels) as (model, weights):
        return logits(model.over(NibbleWeights(weights, Architecture(model.config).pass_order, kernels)))


def check_same(model: FreeModel, kernels: Kernels, seed: int = 0) -> None:
    """All that can be done with the packed form gives what the raw one gives, to the bit."""
    rng = np.random.default_rng(seed)
    with opened(model.raw, kernels) as (plain, weights):
        expected = logits(plain)
        rows = weights.rows("model.embed_tokens.weight", np.arange(plain.config.vocab_size))
        identity = model_identity(plain.config, weights.tensors)
        tensors = {
            name: [data.plain()[0].tobytes() for data in weights.stored(name)] for name in plain.architecture.pass_order
        }
    for found in passes(model.packed, kernels, int(rng.choice([1, 5000, 1 << 20]))):
        _equal(found, expected, "logits")
    with opened(model.packed, kernels) as (packed, weights):
        _equal(weights.rows("model.embed_tokens.weight", np.arange(len(rows))), rows, "rows of the embedding")
        assert model_identity(packed.config, weights.tensors) == identity
        for name, parts in tensors.items():
            assert b"".join(data.plain()[0].tobytes() for data in weights.stored(name)) == b"".join(parts), name
        size_here([*weights.tensors.values()])
        tiers = tiers_here(weights.tensors[name] for name in Architecture(packed.config).pass_order)
        assert weights.draft_bytes == sum(tiers.values())
    _equal(_in_nibbles(model.packed, kernels), _in_nibbles(model.raw, kernels), "4-bit logits")
    report = verify(model.packed, against=model.raw)
    assert report.sound, (report.damage, report.differences)


def check_answers(model: FreeModel) -> None:
    """The answers of an open model, which guesses with its coarse tier."""
    answers = []
    for path in (model.raw, model.packed):
        with LLM.open(path, threads=1, context=64) as llm:
            outputs = llm.generate([[1, 2, 1], [2]], GREEDY)
            answers.append([output.token_ids for output in outputs])
    assert answers[0] == answers[1], answers


def check_copies(model: FreeModel, folder: Path) -> None:
    """Unpacked, the original files come back; packed anew by Penstock, they are the same model."""
    if model.n_packed < model.n_files:
        with pytest.raises(UsageError, match=r"is packed in part: .* is an original file"):
            unpack(model.packed, folder / "unpacked")
        return
    unpack(model.packed, folder / "unpacked")
    for path in model.raw.rglob("*.safetensors"):
        assert (folder / "unpacked" / path.relative_to(model.raw)).read_bytes() == path.read_bytes(), path
    pack(folder / "unpacked", folder / "again")
    assert verify(folder / "again", against=model.raw).sound


def _equal(found: F32, expected: F32, what: str) -> None:
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), what
