"""Checkpoints in the Hugging Face layout: which tensor lies where, checked against the config.

The weights come as `model.safetensors`; as shards that `model.safetensors.index.json` lists; as shards numbered
`model-00001-of-00004.safetensors`; or split as `separated_weights/{embed_tokens,layers0..N,norm,lm_head}.safetensors`.
Opening reads configs and headers and no tensor's data.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import NoReturn

from penstock.config import (
    CheckpointWarning,
    GenerationDefaults,
    ModelConfig,
    parse_config,
    parse_generation_defaults,
)
from penstock.errors import CheckpointError, FormatError, UnsupportedError
from penstock.format import DType, TensorInfo, read_header
from penstock.strict_json import Fields, listed, open_regular, read_json_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SPLIT = "separated_weights"
WEIGHT_DTYPES = (DType.BF16, DType.F16, DType.F32)

_NUMBERED = re.compile(r"model-([0-9]+)-of-([0-9]+)\.safetensors")
# What GPTQ, AWQ, bitsandbytes, compressed-tensors and MLX store beside or instead of a layer's weight.
_QUANTIZED_NAME = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_packed|weight_scale|weight_scale_inv|weight_zero_point"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))$"
)
_UNQUANTIZED_DTYPES = (DType.BOOL, DType.F64, DType.C64)
_COMPLETE = "Complete the download, or copy the directory again."
_USE_ORIGINAL = "Use the original checkpoint of the model: a directory with config.json and *.safetensors in BF16."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose tensors are just those that its config asks for, in the order in which a pass uses them.

    `tensors` has the canonical names ("model.layers.0.self_attn.q_proj.weight"), as has each TensorInfo's `name`,
    whatever the file calls it. `files` are all files with weights.
    """

    path: Path
    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The files that hold the weights, each with the prefix that its tensors' names may lack; and where the index,
    if there is one, places each tensor."""

    prefixes: Mapping[Path, str]
    index: Mapping[str, Path]


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open the checkpoint in the directory `path`.

    Raises CheckpointError where there is none or it is incomplete or contradicts its config, FormatError for broken
    files, UnsupportedError for models, dtypes and formats that Penstock does not run. Warns once
    (CheckpointWarning) of tensors that it passes over.
    """
    path = Path(path)
    try:
        _check_directory(path)
        config = parse_config(read_json_object(path / "config.json"), str(path / "config.json"))
        layout = _find_layout(path, config)
        found = _read_headers(layout)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror or error}"
        raise CheckpointError(problem, "Check that you may read the directory and that its disk works.") from error
    _check_full_precision(found)
    tensors = _expected_of(found, config, path)
    _warn_unexpected(found, config, path)
    return Checkpoint(path, config, MappingProxyType(tensors), tuple(layout.prefixes))


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model with its shape, in the order in which a pass uses them."""
    return dict(_iter_expected(config))


def generation_defaults(path: str | PathLike[str]) -> GenerationDefaults:
    """How the checkpoint in the directory `path` wants its tokens drawn: its generation_config.json, if it has one.

    Stop tokens that this does not name are config.json's. Raises FormatError for malformed files.
    """
    path = Path(path)
    config, generation = path / "config.json", path / "generation_config.json"
    eos = Fields(read_json_object(config), str(config)).token_ids("eos_token_id", 2)
    mapping = read_json_object(generation) if generation.exists() else {}
    return parse_generation_defaults(mapping, str(generation), eos)


def _check_directory(path: Path) -> None:
    """Tell what `path` is where it is no directory with a config.json and safetensors files."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "Give the directory of a checkpoint.")
    if not path.is_dir():
        _fail_not_directory(path)
    if not (any(path.glob("*.safetensors")) or (path / INDEX).exists() or (path / SPLIT).is_dir()):
        if any(path.glob("*.gguf")):
            _fail_gguf(path)
        _check_not_pickled(path)
    if not (path / "config.json").exists():
        remedy = "Give a directory that has config.json beside the *.safetensors files, as on the Hugging Face Hub."
        raise CheckpointError(f"{path} is not a checkpoint: it has no config.json", remedy)


def _fail_not_directory(path: Path) -> NoReturn:
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        _fail_gguf(path)
    raise CheckpointError(f"{path} is a file, not a directory", f"Give the checkpoint's directory: {path.parent}")


def _fail_gguf(path: Path) -> NoReturn:
    raise UnsupportedError(f"{path} is in GGUF format, not the full-precision weights in safetensors", _USE_ORIGINAL)


def _check_not_pickled(path: Path) -> None:
    pickled = sorted(file.name for pattern in ("pytorch_model*.bin", "*.pth", "*.pt") for file in path.glob(pattern))
    if pickled:
        remedy = (
            "Download the safetensors version, or convert a checkpoint that you trust: in Python with transformers, "
            f"AutoModelForCausalLM.from_pretrained({str(path)!r}, dtype='auto').save_pretrained(NEW_DIRECTORY)."
        )
        raise UnsupportedError(f"{path} has only {pickled[0]}: only safetensors is read, never pickle", remedy)


def _find_layout(path: Path, config: ModelConfig) -> _Layout:
    """Where the weights are; of several layouts the first, in the order in which transformers looks for them."""
    if (path / SINGLE).exists():
        return _Layout({path / SINGLE: ""}, {})
    if (path / INDEX).exists():
        index = _read_index(path)
        return _Layout(dict.fromkeys(sorted(set(index.values())), ""), index)
    if numbered := _find_numbered(path):
        return _Layout(dict.fromkeys(numbered, ""), {})
    if (path / SPLIT).is_dir():
        return _Layout(_find_split(path / SPLIT, config), {})
    others = sorted(file.name for file in path.glob("*.safetensors"))
    has = f" (only {listed(others, 3)})" if others else ""
    raise CheckpointError(
        f"{path} has no weights{has}: no {SINGLE}, no {INDEX}, no model-00001-of-*.safetensors, no {SPLIT}/", _COMPLETE
    )


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> shard, from model.safetensors.index.json; each shard exists, somewhere below `path`."""
    index = path / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = f"{index}: weight_map is {shown(weight_map)}, not an object that gives each tensor's file"
        raise FormatError(problem, _COMPLETE)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(f"{index}: the file of {shown(name)} is {shown(shard)}, not a file name", _COMPLETE)
    for shard in sorted(set(weight_map.values())):
        _check_shard_name(shard, index)
        if not (path / shard).exists():
            raise CheckpointError(f"{path} lacks {shard}, which {INDEX} lists", _COMPLETE)
    return {name: path / shard for name, shard in weight_map.items()}


def _check_shard_name(shard: str, index: Path) -> None:
    """Refuse file names that lead out of the directory, on any system, and files that are not safetensors."""
    parts = re.split(r"[/\\]", shard)
    if PureWindowsPath(shard).drive or "\0" in shard or any(part in ("", ".", "..") for part in parts):
        problem = f"{index} names {shown(shard)}, which is not a file inside the checkpoint's directory"
        raise FormatError(problem, "Do not use this checkpoint, unless you can correct the index yourself.")
    if not shard.endswith(".safetensors"):
        problem = f"{index} names {shown(shard)}: only safetensors is read, never pickle"
        raise UnsupportedError(problem, "Use the safetensors version of the checkpoint.")


def _find_numbered(path: Path) -> list[Path]:
    """The complete set of model-00001-of-00004.safetensors and so on, or none."""
    matches = [match for file in sorted(path.iterdir()) if (match := _NUMBERED.fullmatch(file.name))]
    if not matches:
        return []
    names, (width, total) = {match[0] for match in matches}, (len(matches[0][1]), matches[0][2])
    for number in range(1, int(total) + 1):
        name = f"model-{number:0{width}}-of-{total}.safetensors"
        if name not in names:
            raise CheckpointError(f"{path} lacks {name}: {len(names)} shards are there", _COMPLETE)
    if len(names) > int(total):
        problem = f"{path} has {len(names)} numbered shards, but {matches[0][0]} says that there are {int(total)}"
        raise CheckpointError(problem, "Remove the shards that do not belong to this checkpoint.")
    return [path / match[0] for match in matches]


def _find_split(folder: Path, config: ModelConfig) -> dict[Path, str]:
    """The files of the split layout with the prefixes of their tensors' names."""
    for part in _iter_parts(config):
        if not (folder / f"{part}.safetensors").exists():
            raise CheckpointError(f"{folder} lacks {part}.safetensors", _COMPLETE)
    return {file: _part_prefix(file.stem) for file in sorted(folder.glob("*.safetensors"))}


def _iter_parts(config: ModelConfig) -> Iterator[str]:
    yield "embed_tokens"
    for layer in range(config.num_hidden_layers):
        yield f"layers{layer}"
    yield "norm"
    if not config.tie_word_embeddings:
        yield "lm_head"


def _part_prefix(part: str) -> str:
    if part == "lm_head":
        return "lm_head."
    layer = re.fullmatch(r"layers(\d+)", part)
    return f"model.layers.{layer[1]}." if layer else f"model.{part}."


def _canonical_name(name: str, prefix: str) -> str:
    """The whole name of a tensor in a file whose names may lack `prefix`, or only its leading "model."."""
    if not prefix or name.startswith(("model.", "lm_head.")):
        return name
    if name.startswith(("layers.", "embed_tokens.", "norm.")):
        return f"model.{name}"
    return prefix + name


def _read_headers(layout: _Layout) -> dict[str, TensorInfo]:
    """The tensors of all files by canonical name."""
    found: dict[str, TensorInfo] = {}
    for file, prefix in layout.prefixes.items():
        for tensor in read_header(file).tensors.values():
            name = _canonical_name(tensor.name, prefix)
            if name in found:
                problem = f"The tensor {shown(name)} is there twice: in {found[name].path} and in {file}"
                raise FormatError(problem, "Remove the file that does not belong to this checkpoint.")
            found[name] = replace(tensor, name=name)
    for name, file in layout.index.items():
        if name not in found or found[name].path != file:
            raise FormatError(f"{file} lacks the tensor {shown(name)}, which {INDEX} places there", _COMPLETE)
    return found


def _check_full_precision(found: Mapping[str, TensorInfo]) -> None:
    for name, tensor in found.items():
        if _QUANTIZED_NAME.search(name):
            problem = f"{tensor.path} holds {shown(name)}: quantized, not the full-precision weights"
            raise UnsupportedError(problem, _USE_ORIGINAL)


def _expected_of(found: Mapping[str, TensorInfo], config: ModelConfig, path: Path) -> dict[str, TensorInfo]:
    """The model's tensors among those found, each checked, in the order in which a pass uses them."""
    tensors = {}
    for name, shape in _iter_expected(config):
        tensor = found.get(name)
        if tensor is None:
            raise CheckpointError(f"{path} lacks the tensor {shown(name)}, which its config.json calls for", _COMPLETE)
        _check_dtype(tensor)
        if tensor.shape != shape:
            problem = f"{tensor.path}: {name} has shape {list(tensor.shape)}, but config.json makes it {list(shape)}"
            raise CheckpointError(problem, "Put the config.json and the weights of the same model together.")
        tensors[name] = tensor
    return tensors


def _check_dtype(tensor: TensorInfo) -> None:
    if tensor.dtype in WEIGHT_DTYPES:
        return
    problem = f"{tensor.path}: {tensor.name} is {tensor.dtype.value}"
    if tensor.dtype in _UNQUANTIZED_DTYPES:
        raise UnsupportedError(problem, "Penstock runs weights in BF16, F16 and F32; convert the checkpoint to F32.")
    problem = f"{problem}, not the full-precision weights (BF16, F16 or F32)"
    raise UnsupportedError(problem, _USE_ORIGINAL)


def _warn_unexpected(found: Mapping[str, TensorInfo], config: ModelConfig, path: Path) -> None:
    """Warn of tensors that are not the model's; old inverse frequencies and a tied model's copy are harmless."""
    expected = expected_tensors(config)
    if config.tie_word_embeddings:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    names = [name for name in found if name not in expected and not name.endswith(".rotary_emb.inv_freq")]
    if names:
        message = f"{path}: passing over tensors that are not part of the model: {listed(names)}"
        warnings.warn(message, CheckpointWarning, stacklevel=3)


def _iter_expected(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocab = config.hidden_size, config.vocab_size
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config.num_hidden_layers):
        yield from _iter_layer(config, f"model.layers.{layer}")
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (vocab, hidden)


def _iter_layer(config: ModelConfig, layer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    yield f"{layer}.input_layernorm.weight", (hidden,)
    for name, shape in attention.items():
        yield from _iter_linear(f"{layer}.self_attn.{name}_proj", shape, config.attention_bias)
    yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    for name, shape in mlp.items():
        yield from _iter_linear(f"{layer}.mlp.{name}_proj", shape, config.mlp_bias)


def _iter_linear(name: str, shape: tuple[int, int], bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]
