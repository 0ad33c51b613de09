"""Checkpoints in the Hugging Face layout: which tensor lies where, checked against the config.

Opening reads configs and headers and no tensor's data.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.names import canonical_name, is_derived, is_of_another_side
from penstock.architectures.registry import parse_config
from penstock.checkpoints.generation_config import GenerationDefaults, parse_generation_defaults
from penstock.checkpoints.layout import (
    COMPLETE,
    INDEX,
    USE_ORIGINAL,
    Layout,
    LocalFolder,
    check_directory,
    find_layout,
)
from penstock.checkpoints.share_file import SHARE, layers_in_words, read_share
from penstock.checkpoints.stacked import unstacked
from penstock.errors import CheckpointError, CheckpointWarning, FormatError, UnsupportedError
from penstock.gguf.config import generation_json
from penstock.gguf.model import gguf_files, read_model
from penstock.gguf.reader import read_gguf
from penstock.packed_format.reader import is_packed_file, read_packed
from penstock.packed_format.tensor import PackedTensor
from penstock.safetensors_header import DType, Header, TensorInfo, read_header
from penstock.strict_json import Fields, listed, read_json_object, shown
from penstock.system.garbage import no_collections

WEIGHT_DTYPES = (DType.BF16, DType.F16, DType.F32)

# What GPTQ, AWQ, bitsandbytes, compressed-tensors and MLX store beside or instead of a layer's weight.
_QUANTIZED_NAME = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_packed|weight_scale|weight_scale_inv|weight_zero_point"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))$"
)
_UNQUANTIZED_DTYPES = (DType.BOOL, DType.F64, DType.C64)


Tensor: TypeAlias = TensorInfo | PackedTensor


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds: its header, and the tensors, which a packed file has in another form than the header says."""

    header: Header
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose tensors are just those that its config asks for, in the order in which a pass uses them.

    `tensors` has the canonical names ("model.layers.0.self_attn.q_proj.weight"), as has each TensorInfo's `name`,
    whatever the file calls it. `files` are all files with weights. `layers` are those that are there, with all their
    tensors, where the directory has a share of the model alone; None for a whole one.
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    layers: tuple[int, ...] | None = None

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.config)

    def for_context(self, context: int) -> Checkpoint:
        """As it is where sequences have up to so many positions."""
        return replace(self, config=self.config.for_context(context))


@no_collections()
def open_checkpoint(path: str | PathLike[str], *, share: bool = False) -> Checkpoint:
    """Open the checkpoint in the directory `path`, or in the GGUF file of that name.

    `share`: whether a share of a model will do (share_file.py).
    Raises CheckpointError where there is none or it is incomplete or contradicts its config, FormatError for broken
    files, UnsupportedError for models, dtypes and formats that Penstock does not run. Warns once
    (CheckpointWarning) of tensors that it passes over.
    """
    path = Path(path)
    try:
        if (files := gguf_files(path)) is not None:
            return _open_gguf(path, files)
        check_directory(path)
        config = parse_config(read_json_object(path / "config.json"), str(path / "config.json"))
        layers = _share_of(path, config, share)
        layout = find_layout(LocalFolder(path), config, share=layers is not None)
        stored = {file: _read_tensors(file) for file in layout.prefixes}
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror or error}"
        raise CheckpointError(problem, "Check that you may read the directory and that its disk works.") from error
    return assemble(path, config, layout, stored, layers)


def _share_of(path: Path, config: ModelConfig, share: bool) -> tuple[int, ...] | None:
    layers = read_share(path)
    if layers is None:
        return None
    if layers[-1] >= config.num_hidden_layers:
        raise CheckpointError(f"{path / SHARE} names layers that its config.json does not", "Pull the model again.")
    if not share:
        raise CheckpointError(
            f"{path} holds layers {layers_in_words(layers)} alone, for this machine's part in a cluster",
            "Run it from the machine that has all of it, with --cluster; or delete it and pull the whole model.",
        )
    return layers


def assemble(
    path: Path,
    config: ModelConfig,
    layout: Layout,
    stored: Mapping[Path, Stored],
    layers: tuple[int, ...] | None = None,
) -> Checkpoint:
    """The checkpoint of these files, wherever they are; `path` is what messages call it; `layers`: those that have to
    be there, None for all of the model. Raises as open_checkpoint."""
    found = _by_name(layout, stored)
    _check_full_precision(found)
    return _of_tensors(path, config, found, tuple(layout.prefixes), layers)


def _open_gguf(path: Path, files: tuple[Path, ...]) -> Checkpoint:
    model = read_model(files)
    return _of_tensors(path, parse_config(model.config, str(files[0])), model.tensors, files)


def _of_tensors(
    path: Path,
    config: ModelConfig,
    found: Mapping[str, Tensor],
    files: tuple[Path, ...],
    layers: tuple[int, ...] | None = None,
) -> Checkpoint:
    """Those that the config asks for, checked; `found` are all that there are, by canonical name."""
    tensors = _expected_of(found, config, path, layers)
    _warn_unexpected(found, config, path)
    return Checkpoint(path, config, MappingProxyType(tensors), files, layers)


def generation_defaults(path: str | PathLike[str]) -> GenerationDefaults:
    """How the checkpoint at `path` wants its tokens drawn: its generation_config.json, if it has one.

    Stop tokens that this does not name are config.json's. Raises FormatError for malformed files.
    """
    path = Path(path)
    if (files := gguf_files(path)) is not None:
        return parse_generation_defaults(generation_json(read_gguf(files[0]).metadata), str(files[0]))
    config, generation = path / "config.json", path / "generation_config.json"
    eos = Fields(read_json_object(config), str(config)).token_ids("eos_token_id", 2)
    mapping = read_json_object(generation) if generation.exists() else {}
    return parse_generation_defaults(mapping, str(generation), eos)


def _read_tensors(file: Path) -> Stored:
    header = read_header(file)
    return Stored(header, read_packed(file, header=header).tensors if is_packed_file(header) else header.tensors)


def _by_name(layout: Layout, stored: Mapping[Path, Stored]) -> dict[str, Tensor]:
    """The tensors of all files by canonical name."""
    found: dict[str, Tensor] = {}
    places: set[tuple[str, Path]] = set()
    for file, prefix in layout.prefixes.items():
        places |= {(canonical_name(name, prefix), file) for name in stored[file].header.tensors}
        for tensor in stored[file].tensors.values():
            for own in unstacked(replace(tensor, name=canonical_name(tensor.name, prefix))):
                if own.name in found:
                    problem = f"The tensor {shown(own.name)} is there twice: in {found[own.name].path} and in {file}"
                    raise FormatError(problem, "Remove the file that does not belong to this checkpoint.")
                found[own.name] = own
    for name, file in layout.index.items():
        if (name, file) not in places:
            raise FormatError(f"{file} lacks the tensor {shown(name)}, which {INDEX} places there", COMPLETE)
    return found


def _check_full_precision(found: Mapping[str, Tensor]) -> None:
    for name, tensor in found.items():
        if _QUANTIZED_NAME.search(name):
            problem = f"{tensor.path} holds {shown(name)}: quantized, not the full-precision weights"
            raise UnsupportedError(problem, USE_ORIGINAL)


def _expected_of(
    found: Mapping[str, Tensor], config: ModelConfig, path: Path, layers: tuple[int, ...] | None
) -> dict[str, Tensor]:
    """The model's tensors among those found, each checked, in the order in which a pass uses them."""
    tensors, architecture = {}, Architecture(config)
    needed = None if layers is None else {*architecture.tensors_of(layers, embedding=False, head=False)}
    for name, shape in architecture.iter_tensors():
        tensor = found.get(name)
        if tensor is None:
            if needed is not None and name not in needed:
                continue
            raise CheckpointError(f"{path} lacks the tensor {shown(name)}, which its config.json calls for", COMPLETE)
        _check_dtype(tensor)
        if tensor.shape != shape:
            problem = f"{tensor.path}: {name} has shape {shown(tensor.shape)}, but config.json makes it {shape}"
            raise CheckpointError(problem, "Put the config.json and the weights of the same model together.")
        tensors[name] = tensor
    return tensors


def _check_dtype(tensor: Tensor) -> None:
    if tensor.dtype in WEIGHT_DTYPES:
        return
    where = f"{tensor.path}: {tensor.name} is {tensor.dtype.value}"
    if tensor.dtype in _UNQUANTIZED_DTYPES:
        raise UnsupportedError(f"{where}, not BF16, F16 or F32", "Convert the checkpoint to one of these.")
    raise UnsupportedError(f"{where}, not the full-precision weights (BF16, F16 or F32)", USE_ORIGINAL)


def _warn_unexpected(found: Mapping[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Warn of tensors that are not the model's; what follows from others is harmless."""
    architecture = Architecture(config)
    expected = architecture.tensors | architecture.copies
    names = [name for name in found if name not in expected and not is_derived(name)]
    own = [name for name in names if not is_of_another_side(name)]
    if len(own) < len(names):
        message = f"{path}: passing over what sees pictures: {len(names) - len(own)} tensors"
        warnings.warn(message, CheckpointWarning, stacklevel=4)
    if own:
        message = f"{path}: passing over tensors that are not part of the model: {listed(own)}"
        warnings.warn(message, CheckpointWarning, stacklevel=4)
