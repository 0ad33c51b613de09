"""Checkpoints of random weights, as hard to compress as trained ones, for measuring without gated weights.

Weights are Gaussian with a log-normal scale for each row, each column and each tensor. The exponents of Gaussians have
2.54 bits of entropy wherever their scale lies; rows and columns, each telling about 0.02 bits of it, make it 2.59 in a
matrix and 2.60 over all. Published histograms of Llama-3.1-8B-Instruct have 2.58 bits over all, 2.57 to 2.64 by kind.
The commonest exponents cover about what they do there: three of them 72.5 %, seven 96.7 %, sixteen 99.985 %.

Scales are those of an initialised model: every branch adds about as much to the residual stream as the last one, and
attention scores and logits deviate by 1 to 2.

Every number is drawn afresh, by a generator keyed by seed, tensor and block. So the bytes depend on the seed and on
NumPy's stream (stable in practice, not promised: NEP 19), not on the number of threads or layers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.names import is_embedding, is_norm
from penstock.architectures.registry import parse_config
from penstock.compute.kernels import default_threads
from penstock.disk.in_order import in_order
from penstock.disk.new_files import new_file, write_through
from penstock.errors import PenstockError, UsageError
from penstock.safetensors_header import encode_header
from penstock.synth.tokenizer import first_unused_id, tokenizer_config_json, tokenizer_json

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

SHARD_BYTES = 5_000_000_000  # as the Hub's tools split checkpoints, into tensors of at most "5GB" together
_BLOCK_WEIGHTS = 1 << 17  # drawn and rounded within a core's own cache
_BLOCKS_AHEAD = 128  # finished blocks, a quarter of a megabyte each, that wait for the disk
_SPARE_BYTES = 64 << 20  # tokenizer, JSON and what the file system itself needs

_ROW_SPREAD, _COLUMN_SPREAD, _TENSOR_SPREAD, _NORM_SPREAD = 0.14, 0.15, 0.05, 0.1
_UNUSED_SCALE = 2.0**-74  # tokens that training never met keep rows of next to nothing

# Deviation of an output of each matrix for inputs of deviation 1: so near each other that the pooled exponents have
# hardly more entropy than those of one matrix.
_GAINS = {
    "embed_tokens": 0.85,
    "q_proj": 1.1,
    "k_proj": 1.2,
    "v_proj": 0.85,
    "o_proj": 0.85,
    "gate_proj": 0.9,
    "up_proj": 0.85,
    "down_proj": 1.6,
    "qkv_proj": 1.05,
    "gate_up_proj": 0.87,
    "lm_head": 0.9,
    "gate": 1.0,  # of experts
    "shared_expert_gate": 1.0,
}


@dataclass(frozen=True)
class Shard:
    """A safetensors file to be written: its BF16 tensors' shapes by name, in the order of their bytes."""

    name: str
    tensors: Mapping[str, tuple[int, ...]]

    def header(self) -> bytes:
        """What it begins with."""
        return encode_header({name: ("BF16", shape, 2 * prod(shape)) for name, shape in self.tensors.items()})

    @property
    def data_bytes(self) -> int:
        return sum(2 * prod(shape) for shape in self.tensors.values())


def plan_shards(config: ModelConfig, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The files of such a checkpoint on the Hub: tensors in a model's usual order, a new file when one is full, sorted
    by name within."""
    shapes = Architecture(config).tensors
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(shapes, key=_usual_order):
        n_bytes = 2 * prod(shapes[name])
        if groups[-1] and filled + n_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += n_bytes
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return [Shard(name, {key: shapes[key] for key in sorted(group)}) for name, group in zip(names, groups, strict=True)]


def _usual_order(name: str) -> tuple[float, bool]:
    """Embedding, the layers, each with its norms last, final norm and head; sorting keeps the rest as it is."""
    if ".layers." in name:
        return int(name.split(".")[2]), "layernorm" in name
    return (-1.0 if "embed_tokens" in name else float("inf")), False


def synthesize(
    config: Mapping[str, Any],
    out: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    tokenizer: bool = True,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a checkpoint of the model that `config`, the content of a config.json, describes, to the directory `out`.

    `threads`: None for every CPU. `on_progress` gets the weights' bytes written so far and in all. What was written is
    removed again where it cannot be finished; config.json comes last. Raises UsageError where `out` holds anything or
    an option cannot be meant, PenstockError where the disk is too full or fails.
    """
    model = parse_config(config, "the shape's config")
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"the seed {seed} is out of range", "Give a number from 0 to 2**64 - 1.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do anything", "Give at least 1, or leave the number out.")
    shards = plan_shards(model, shard_bytes)
    total = sum(shard.data_bytes for shard in shards)
    with _new_directory(out) as directory:
        directory.check_room(total + _SPARE_BYTES)
        if tokenizer:
            directory.write_json("tokenizer.json", tokenizer_json(model))
            directory.write_json("tokenizer_config.json", tokenizer_config_json(model))
        with ThreadPoolExecutor(threads or default_threads()) as pool:
            _write_shards(directory, shards, pool, partial(_iter_blocks, model, seed), on_progress)
        if len(shards) > 1:
            directory.write_json("model.safetensors.index.json", _index(shards, total))
        directory.write_json("generation_config.json", _generation_config(config))
        directory.write_json("config.json", config)


def _write_shards(
    directory: _Directory,
    shards: Sequence[Shard],
    pool: ThreadPoolExecutor,
    iter_blocks: Callable[[Shard], Iterator[Callable[[], U16]]],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    total, written = sum(shard.data_bytes for shard in shards), 0
    for shard in shards:
        with directory.file(shard.name) as file:
            file.write(shard.header())
            for block in in_order(pool, iter_blocks(shard), _BLOCKS_AHEAD):
                write_through(file, block.data)
                written += block.nbytes
                if on_progress:
                    on_progress(written, total)


def _index(shards: Sequence[Shard], total: int) -> dict[str, Any]:
    places = {name: shard.name for shard in shards for name in shard.tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    return {**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def _iter_blocks(config: ModelConfig, seed: int, shard: Shard) -> Iterator[Callable[[], U16]]:
    """The shard's data as functions that draw it, block by block."""
    for name, shape in shard.tensors.items():
        if len(shape) == 1:
            yield partial(draw_vector, name, shape[0], seed, 1 - config.norm_offset if is_norm(name) else 0.0)
            continue
        n_rows, n_columns = shape
        columns = _column_scales(name, n_columns, seed)
        if is_embedding(name):
            columns /= np.float32(config.embedding_multiplier)
        n_used = first_unused_id(config) if is_embedding(name) else n_rows
        step = max(1, _BLOCK_WEIGHTS // n_columns)
        for begin in range(0, n_rows, step):
            yield partial(draw_rows, name, range(begin, min(begin + step, n_rows)), columns, n_used, seed)


def draw_vector(name: str, length: int, seed: int, center: float) -> U16:
    """A norm's weights or a bias, near `center`: BF16 bits [length]."""
    values = _generator(name, "", seed).standard_normal(length, dtype=np.float32) * np.float32(_NORM_SPREAD)
    return to_bf16(values + np.float32(center))


def draw_rows(name: str, rows: range, column_scales: F32, n_used: int, seed: int) -> U16:
    """These rows of a matrix, BF16 bits [len(rows), n_columns]; from row `n_used` on they are next to nothing.

    The generator is keyed by the first of them: other divisions into blocks give other weights.
    """
    generator = _generator(name, str(rows.start), seed)
    row_scales = np.exp(_ROW_SPREAD * generator.standard_normal(len(rows))).astype(np.float32)
    row_scales[max(0, n_used - rows.start) :] *= np.float32(_UNUSED_SCALE)
    values = generator.standard_normal((len(rows), len(column_scales)), dtype=np.float32)
    values *= row_scales[:, None]
    values *= column_scales
    return to_bf16(values)


def _column_scales(name: str, n_columns: int, seed: int) -> F32:
    """Deviations [n_columns] of a matrix's columns."""
    generator = _generator(name, "columns", seed)
    tensor = np.log(_GAINS[name.split(".")[-2]]) + _TENSOR_SPREAD * generator.standard_normal()
    scales = np.exp(tensor + _COLUMN_SPREAD * generator.standard_normal(n_columns)) / np.sqrt(n_columns)
    return scales.astype(np.float32)  # type: ignore[no-any-return]


def _generator(name: str, part: str, seed: int) -> np.random.Generator:
    key = xxhash.xxh3_64_intdigest(f"{name}/{part}".encode())
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, key))))


def to_bf16(values: F32) -> U16:
    """BF16 bits of finite float32 values, rounded to nearest, ties to even. Overwrites `values`."""
    bits = values.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return (bits >> 16).astype(np.uint16)


class _Directory:
    """A directory that was empty, and the files written to it since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[Path] = []

    def check_room(self, need: int) -> None:
        have = shutil.disk_usage(self.path).free
        if have < need:
            problem = f"{self.path} needs {need:,} bytes of disk and has {have:,}"
            raise PenstockError(problem, "Free some space, choose another disk, or make fewer layers (--layers).")

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A file that gets its name once its bytes are on the disk."""
        path, unfinished = self.path / name, self.path / f"{name}.partial"
        self.written += [path, unfinished]
        with new_file(path, unfinished) as file:
            yield file

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with self.file(name) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode())


@contextmanager
def _new_directory(path: Path) -> Iterator[_Directory]:
    """The empty directory `path`, made if need be; after a failure it is as before."""
    made = not path.exists()
    if not made and not (path.is_dir() and not any(path.iterdir())):
        problem = f"{path} is there already and is not an empty directory"
        raise UsageError(problem, "Choose a name that is not taken, or delete it first.")
    directory = _Directory(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield directory
    except BaseException as error:
        for file in directory.written:
            file.unlink(missing_ok=True)
        if made and path.exists():
            path.rmdir()
        if isinstance(error, OSError):
            problem = f"{error.filename or path} cannot be written: {error.strerror or error}"
            raise PenstockError(problem, "Check the disk, its free space and your permissions there.") from error
        raise
