"""The model in a GGUF file, or in the files of one that was split: its config, and where its tensors lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.errors import CheckpointError, FormatError, UnsupportedError
from penstock.gguf.config import config_json, family_of
from penstock.gguf.families import NO_WEIGHTS
from penstock.gguf.reader import is_gguf, read_gguf
from penstock.gguf.stored import restored_tensor
from penstock.safetensors_header import DType, TensorInfo
from penstock.strict_json import listed, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from penstock.compute.kernels import F32
    from penstock.gguf.families import GgufFamily
    from penstock.gguf.reader import GgufHeader, GgufTensor, Value

_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MOST_SPLITS = 10_000
_MOST_FACTORS = 4096
COMPLETE = "Complete the download, or copy the files again."


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model as its files have it. `tensors` are by canonical name where they have one, and else by their own."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    """Without long arrays."""
    config: Mapping[str, Any]
    """The content of a config.json."""
    tensors: Mapping[str, TensorInfo]


def gguf_files(path: Path) -> tuple[Path, ...] | None:
    """The files of the GGUF model at `path`: a file, one of the files of a model that was split, or a directory that
    has such files and no safetensors. None where there is no GGUF.

    Raises CheckpointError where some are missing, or where a directory has several models.
    """
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if file.exists())
        found = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]
        others = (".safetensors", ".safetensors.index.json", "separated_weights")
        if not found or any(name.endswith(others) for name in names):
            return None
        sets = [_split_set(path / name) for name in found]
        if any(files != sets[0] for files in sets):
            raise CheckpointError(f"{path} has several GGUF models: {listed(found)}", "Give the file of one of them.")
        return sets[0]
    if not path.exists() or not is_gguf(path):
        return None
    return _split_set(path)


def _split_set(path: Path) -> tuple[Path, ...]:
    """All files of the model that one of them belongs to."""
    match = _SPLIT.fullmatch(path.name)
    if match is None or not 0 < int(match[3]) <= _MOST_SPLITS:
        return (path,)
    files = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{path.parent} lacks {file.name}, a part of {path.name}", COMPLETE)
    return tuple(files)


def read_model(files: Sequence[Path]) -> GgufModel:
    """The model in these files. Raises FormatError, UnsupportedError; warns as `config_json` does."""
    headers = [read_gguf(file) for file in files]
    _check_split(headers)
    source, metadata = str(files[0]), headers[0].metadata
    _, family = family_of(metadata, source)
    stored: dict[str, GgufTensor] = {}
    places: dict[str, TensorInfo] = {}
    for header in headers:
        for tensor in header.tensors.values():
            if tensor.name in stored:
                problem = f"The tensor {shown(tensor.name)} is in {places[tensor.name].path} and in {header.path}"
                raise FormatError(problem, "Remove the file that does not belong to this model.")
            stored[tensor.name] = tensor
            places[tensor.name] = TensorInfo(
                tensor.name, tensor.dtype, tensor.shape, header.path, tensor.begin, tensor.end
            )
    factors = {name: _read_factors(places[name]) for name in NO_WEIGHTS if name in places}
    config = config_json(metadata, stored, factors, source)
    tensors = {}
    for name, place in places.items():
        if name not in NO_WEIGHTS:
            canonical = family.canonical(name)
            tensors[canonical or name] = _restored(place, canonical or name, family, config)
    return GgufModel(tuple(files), metadata, MappingProxyType(config), MappingProxyType(tensors))


def _check_split(headers: Sequence[GgufHeader]) -> None:
    """Make sure that the files are all parts of a model, in their order."""
    for index, header in enumerate(headers):
        count, number = (header.metadata.get(f"split.{key}", default) for key, default in (("count", 1), ("no", 0)))
        if count in (0, 1) and len(headers) == 1:
            continue
        if (count, number) != (len(headers), index):
            problem = f"{header.path} is part {shown(number)} of {shown(count)} by its metadata"
            remedy = "Give the parts the names that they were published with: NAME-00001-of-00003.gguf."
            raise CheckpointError(f"{problem}, not part {index} of {len(headers)} as by its name", remedy)


def _restored(place: TensorInfo, name: str, family: GgufFamily, config: Mapping[str, Any]) -> TensorInfo:
    place = TensorInfo(name, place.dtype, place.shape, place.path, place.begin, place.end)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    in_pairs = family.in_pairs and re.search(r"\.self_attn\.[qk]_proj\.", name)
    if in_pairs and "partial_rotary_factor" in config:
        problem = f"{place.path}: a part of each head turns (rope.dimension_count), whose rows lie in pairs"
        raise UnsupportedError(problem, "Use the original checkpoint of the model.")
    return restored_tensor(
        place,
        head_rows=head_dim if in_pairs else 0,
        shift=family.norm_shift if name.endswith("norm.weight") else 0.0,
    )


def _read_factors(place: TensorInfo) -> F32:
    """A short vector of positive float32. Raises FormatError, ReadError."""
    if place.dtype is not DType.F32 or len(place.shape) != 1 or place.shape[0] > _MOST_FACTORS:
        problem = f"{place.path}: {place.name} is {place.dtype.value} of shape {list(place.shape)}"
        raise FormatError(f"{problem}, not a short vector of F32", COMPLETE)
    files = Files()
    try:
        data = files.read(Extent(place.path, place.begin, place.nbytes), aligned_buffer(place.nbytes))
    finally:
        files.close()
    values: F32 = data.view(np.float32).copy()
    if not np.all(np.isfinite(values) & (values > 0)):
        raise FormatError(f"{place.path}: {place.name} holds numbers that are not positive", COMPLETE)
    return values
