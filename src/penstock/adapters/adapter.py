"""A LoRA adapter (arXiv 2106.09685) in PEFT's format, read and checked: what is added to the products of a model.

Beside a product y = W x + b, an adapter has s B (A x), with A [r, in] and B [out, r]. All of it is in memory; W is not
touched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import xxhash

from penstock.adapters.config import parse_config
from penstock.adapters.places import is_there
from penstock.architectures.names import canonical_name, is_embedding
from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.errors import CheckpointError, FormatError, MemoryCeilingError, UnsupportedError
from penstock.safetensors_header import DType, read_header
from penstock.strict_json import read_json_object, shown
from penstock.system import machine
from penstock.system.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from penstock.adapters.config import LoraConfig
    from penstock.architectures.base import Architecture
    from penstock.compute.kernels import U8
    from penstock.safetensors_header import Header, TensorInfo

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
DTYPES = (DType.BF16, DType.F16, DType.F32)
ITS_OWN_MODEL = "Use it with the model that it was trained for."
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one matrix's product; the weights as the file has them, row by row."""

    rank: int
    a: U8
    a_dtype: str
    b: U8
    b_dtype: str
    """[out, rank]"""
    scale: float
    """A float32 value."""
    outputs: int

    def rows_of_b(self, rows: slice) -> U8:
        """Some rows of B."""
        nbytes = len(self.b) // self.outputs
        return self.b[rows.start * nbytes : rows.stop * nbytes]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory."""

    name: str
    path: Path
    matrices: Mapping[str, LowRank]
    """By the weight of the base model that it goes with, by its canonical name."""
    nbytes: int
    """What it takes in memory."""
    digest: str
    """Of A, B and s, 32 hexadecimal digits: keys and values depend on these alone."""

    @property
    def rank(self) -> int:
        """The highest of its matrices."""
        return max(one.rank for one in self.matrices.values())

    def only(self, names: Iterable[str]) -> Mapping[str, LowRank]:
        """Those of some matrices."""
        return {name: self.matrices[name] for name in names if name in self.matrices}


def open_adapter(name: str, path: Path, architecture: Architecture, most_bytes: int | None = None) -> Adapter:
    """The adapter in the directory `path`, for a model of this architecture, called `name` from now on.

    `most_bytes`: what it may take; None for what the machine has free. Raises MemoryCeilingError where it takes more,
    CheckpointError where there is none or it is another model's, FormatError for broken files, UnsupportedError
    for what is not plain LoRA of the layers' matrices, ReadError. Warns (CheckpointWarning) of unknown keys.
    """
    _check_there(path)
    config = parse_config(read_json_object(path / CONFIG), str(path / CONFIG))
    header = read_header(path / WEIGHTS)
    pairs = _pairs(header, architecture)
    data = _read(header, machine.available_bytes() if most_bytes is None else most_bytes)
    matrices = {
        weight: _low_rank(config, module, a, b, data, header.data_begin) for weight, (module, a, b) in pairs.items()
    }
    return Adapter(name, path, MappingProxyType(matrices), data.nbytes, _digest(matrices))


def _check_there(path: Path) -> None:
    if not is_there(path) or not path.is_dir():
        raise CheckpointError(f"{path} is no directory", f"Give the one that holds {CONFIG} and {WEIGHTS}.")
    here = {name for name in (CONFIG, WEIGHTS, _PICKLED) if is_there(path / name)}
    if here == {CONFIG, _PICKLED}:
        problem = f"{path} has its weights in {_PICKLED}, which is a program as much as it is data"
        raise UnsupportedError(problem, f"Have PEFT save it as {WEIGHTS} (safe_serialization=True).")
    for name in (CONFIG, WEIGHTS):
        if name not in here:
            raise CheckpointError(f"{path} has no {name}", "Give the directory of an adapter as PEFT saves it.")


def _pairs(header: Header, architecture: Architecture) -> dict[str, tuple[str, TensorInfo, TensorInfo]]:
    """By the weight that it goes with: the module's name in the file, A and B."""
    found: dict[str, dict[str, TensorInfo]] = {}
    modules: dict[str, str] = {}
    for tensor in header.tensors.values():
        key = _KEY.fullmatch(tensor.name)
        if key is None:
            _refuse_key(tensor)
        weight = canonical_name(f"{key[1]}.weight", "")
        if modules.setdefault(weight, key[1]) != key[1]:
            raise FormatError(f"{header.path} has {shown(weight)} under two names", "Get the adapter again.")
        found.setdefault(weight, {})[key[2]] = tensor
    if not found:
        raise FormatError(f"{header.path} has no tensors", "Get the adapter again.")
    matrices = _matrices(architecture)
    return {weight: (modules[weight], *_pair(weight, pair, matrices)) for weight, pair in found.items()}


def _refuse_key(tensor: TensorInfo) -> NoReturn:
    problem = f"{tensor.path} has the tensor {shown(tensor.name)}, which is no lora_A or lora_B of a module"
    raise UnsupportedError(problem, "Use a plain LoRA adapter, as PEFT saves it.")


def _matrices(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The matrices that an adapter may go with, and their shapes."""
    layers = range(architecture.config.num_hidden_layers)
    shapes = architecture.tensors
    return {name: shapes[name] for name in architecture.matrices_of(layers, head=False)}


def _pair(
    weight: str, pair: Mapping[str, TensorInfo], matrices: Mapping[str, tuple[int, ...]]
) -> tuple[TensorInfo, TensorInfo]:
    one = next(iter(pair.values()))
    if is_embedding(weight) or weight == "lm_head.weight":
        raise UnsupportedError(
            f"{one.path} adapts {shown(weight)}: only matrices of layers may be", "Train it without."
        )
    if weight not in matrices:
        raise CheckpointError(f"{one.path} adapts {shown(weight)}, which the model does not have", ITS_OWN_MODEL)
    if len(pair) < 2:
        raise FormatError(f"{one.path} has only one of lora_A and lora_B for {weight}", "Get the adapter again.")
    for tensor in pair.values():
        if tensor.dtype not in DTYPES:
            problem = f"{tensor.path}: {tensor.name} is {tensor.dtype.value}, not BF16, F16 or F32"
            raise UnsupportedError(problem, "Save the adapter in one of these.")
    a, b = pair["A"], pair["B"]
    outputs, inputs = matrices[weight]
    rank = a.shape[0] if a.shape else 0
    if not rank or a.shape != (rank, inputs) or b.shape != (outputs, rank):
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        fitting = f"[r, {inputs}] and [{outputs}, r]"
        raise CheckpointError(f"{a.path}: lora_A and lora_B of {weight} are {shapes}, not {fitting}", ITS_OWN_MODEL)
    return a, b


def _read(header: Header, most_bytes: int) -> U8:
    """The data of all tensors, uint8 [file_size - data_begin]."""
    nbytes, files = header.file_size - header.data_begin, Files()
    if nbytes > most_bytes:
        problem = f"{header.path} has {format_bytes(nbytes)}, which has to be in memory: more than there is."
        raise MemoryCeilingError(problem, "Raise --memory, or use an adapter of lower rank.")
    try:
        return files.read(Extent(header.path, header.data_begin, nbytes), aligned_buffer(nbytes))
    finally:
        files.close()


def _low_rank(config: LoraConfig, module: str, a: TensorInfo, b: TensorInfo, data: U8, begin: int) -> LowRank:
    rank = config.rank_of(module)
    if a.shape[0] != rank:
        problem = f"{a.path}: {a.name} has rank {a.shape[0]}, and {CONFIG} says {rank}"
        raise FormatError(problem, "Put the files of the same adapter together.")
    parts = (data[tensor.begin - begin : tensor.end - begin] for tensor in (a, b))
    return LowRank(rank, next(parts), a.dtype.value, next(parts), b.dtype.value, config.scale_of(module), b.shape[0])


def _digest(matrices: Mapping[str, LowRank]) -> str:
    digest = xxhash.xxh3_128()
    for name, one in sorted(matrices.items()):
        digest.update(f"{name} {one.rank} {one.outputs} {one.a_dtype} {one.b_dtype}\n".encode())
        for part in (one.a, one.b, np.full(1, one.scale, "<f4")):
            digest.update(part.data)
    return digest.hexdigest()
