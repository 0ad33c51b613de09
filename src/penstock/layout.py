"""The files of a checkpoint: where its weights are, in every layout, without opening them.

The weights come as `model.safetensors`; as shards that `model.safetensors.index.json` lists; as shards numbered
`model-00001-of-00004.safetensors`; or split as `separated_weights/{embed_tokens,layers0..N,norm,lm_head}.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NoReturn

from penstock.config import ModelConfig
from penstock.errors import CheckpointError, FormatError, UnsupportedError
from penstock.strict_json import listed, open_regular, read_json_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SPLIT = "separated_weights"
COMPLETE = "Complete the download, or copy the directory again."
USE_ORIGINAL = "Use the original checkpoint of the model: a directory with config.json and *.safetensors in BF16."

_NUMBERED = re.compile(r"model-([0-9]+)-of-([0-9]+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files that hold the weights, each with the prefix that its tensors' names may lack; and where the index,
    if there is one, places each tensor."""

    prefixes: Mapping[Path, str]
    index: Mapping[str, Path]


def check_directory(path: Path) -> None:
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
    raise UnsupportedError(f"{path} is in GGUF format, not the full-precision weights in safetensors", USE_ORIGINAL)


def _check_not_pickled(path: Path) -> None:
    pickled = sorted(file.name for pattern in ("pytorch_model*.bin", "*.pth", "*.pt") for file in path.glob(pattern))
    if pickled:
        remedy = (
            "Download the safetensors version, or convert a checkpoint that you trust: in Python with transformers, "
            f"AutoModelForCausalLM.from_pretrained({str(path)!r}, dtype='auto').save_pretrained(NEW_DIRECTORY)."
        )
        raise UnsupportedError(f"{path} has only {pickled[0]}: only safetensors is read, never pickle", remedy)


def find_layout(path: Path, config: ModelConfig) -> Layout:
    """Where the weights are; of several layouts the first, in the order in which transformers looks for them."""
    if (path / SINGLE).exists():
        return Layout({path / SINGLE: ""}, {})
    if (path / INDEX).exists():
        index = _read_index(path)
        return Layout(dict.fromkeys(sorted(set(index.values())), ""), index)
    if numbered := _find_numbered(path):
        return Layout(dict.fromkeys(numbered, ""), {})
    if (path / SPLIT).is_dir():
        return Layout(_find_split(path / SPLIT, config), {})
    others = sorted(file.name for file in path.glob("*.safetensors"))
    has = f" (only {listed(others, 3)})" if others else ""
    raise CheckpointError(
        f"{path} has no weights{has}: no {SINGLE}, no {INDEX}, no model-00001-of-*.safetensors, no {SPLIT}/", COMPLETE
    )


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> shard, from model.safetensors.index.json; each shard exists, somewhere below `path`."""
    index = path / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = f"{index}: weight_map is {shown(weight_map)}, not an object that gives each tensor's file"
        raise FormatError(problem, COMPLETE)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(f"{index}: the file of {shown(name)} is {shown(shard)}, not a file name", COMPLETE)
    for shard in sorted(set(weight_map.values())):
        _check_shard_name(shard, index)
        if not (path / shard).exists():
            raise CheckpointError(f"{path} lacks {shard}, which {INDEX} lists", COMPLETE)
    return {name: path / shard for name, shard in weight_map.items()}


def _check_shard_name(shard: str, index: Path) -> None:
    """Refuse file names that lead out of the directory, on any system, and files that are not safetensors."""
    parts = re.split(r"[/\\]", shard)
    if PureWindowsPath(shard).drive or not shard.isprintable() or any(part in ("", ".", "..") for part in parts):
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
            raise CheckpointError(f"{path} lacks {name}: {len(names)} shards are there", COMPLETE)
    if len(names) > int(total):
        problem = f"{path} has {len(names)} numbered shards, but {matches[0][0]} says that there are {int(total)}"
        raise CheckpointError(problem, "Remove the shards that do not belong to this checkpoint.")
    return [path / match[0] for match in matches]


def _find_split(folder: Path, config: ModelConfig) -> dict[Path, str]:
    """The files of the split layout with the prefixes of their tensors' names."""
    for part in _iter_parts(config):
        if not (folder / f"{part}.safetensors").exists():
            raise CheckpointError(f"{folder} lacks {part}.safetensors", COMPLETE)
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
    layer = re.fullmatch(r"layers([0-9]+)", part)
    return f"model.layers.{layer[1]}." if layer else f"model.{part}."


def canonical_name(name: str, prefix: str) -> str:
    """The whole name of a tensor in a file whose names may lack `prefix`, or only its leading "model."."""
    if not prefix or name.startswith(("model.", "lm_head.")):
        return name
    if name.startswith(("layers.", "embed_tokens.", "norm.")):
        return f"model.{name}"
    return prefix + name
