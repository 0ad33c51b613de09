"""The files of a checkpoint: where its weights are, in every layout, without opening them.

The weights come as `model.safetensors`; as shards that `model.safetensors.index.json` lists; as shards numbered
`model-00001-of-00004.safetensors`; or split as `separated_weights/{embed_tokens,layers0..N,norm,lm_head}.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn, Protocol

from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.names import prefix_of_part
from penstock.errors import CheckpointError, FormatError, UnsupportedError
from penstock.strict_json import listed, open_regular, read_json_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SPLIT = "separated_weights"
UNFINISHED = ".penstock"
"""A folder in a directory that Penstock is writing, there until all of it is written."""
COMPLETE = "Complete the download, or copy the directory again."
USE_ORIGINAL = "Use the original checkpoint of the model: a directory with config.json and *.safetensors in BF16."

_NUMBERED = re.compile(r"model-([0-9]+)-of-([0-9]+)\.safetensors")
_PICKLED = re.compile(r"pytorch_model.*\.bin|.*\.pth|.*\.pt")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files that hold the weights, each with the prefix that its tensors' names may lack; and where the index,
    if there is one, places each tensor."""

    prefixes: Mapping[Path, str]
    index: Mapping[str, Path]

    def only(self, files: Collection[Path]) -> Layout:
        """What is in these files."""
        return Layout(
            {path: prefix for path, prefix in self.prefixes.items() if path in files},
            {name: path for name, path in self.index.items() if path in files},
        )


class Folder(Protocol):
    """A checkpoint's directory, on this machine or elsewhere; `path` is what messages call it."""

    @property
    def path(self) -> Path: ...

    @property
    def complete(self) -> str:
        """What to do where a file is missing."""

    def names(self, folder: str = "") -> list[str]:
        """Of the files and folders in it, or in one of its folders, sorted; none where that is not there."""

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, which may lead through folders."""

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file. Raises FormatError where there is none."""


class LocalFolder:
    """A directory of this machine."""

    complete = COMPLETE

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, folder: str = "") -> list[str]:
        within = self.path / folder
        # Links that lead nowhere, as to files of the Hub's cache that were never downloaded, are no files.
        return sorted(file.name for file in within.iterdir() if file.exists()) if within.is_dir() else []

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        return read_json_object(self.path / name)


def check_directory(path: Path) -> None:
    """Tell what `path` is where it is no directory with a config.json and safetensors files."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "Give the directory of a checkpoint.")
    if not path.is_dir():
        _fail_not_directory(path)
    if (path / UNFINISHED).exists() and not (path / "config.json").exists():
        problem = f"{path} is not finished: packing, unpacking or pulling it was interrupted"
        raise CheckpointError(problem, "Run the command that wrote it again: it goes on from there.")
    check_folder(LocalFolder(path))


def check_folder(folder: Folder) -> None:
    """Tell what is in `folder` where it has no config.json and safetensors files."""
    names = folder.names()
    if not (any(name.endswith(".safetensors") for name in names) or INDEX in names or SPLIT in names):
        if any(name.endswith(".gguf") for name in names):
            problem = f"{folder.path} is in GGUF format, not the full-precision weights in safetensors"
            raise UnsupportedError(problem, USE_ORIGINAL)
        _check_not_pickled(folder)
    if "config.json" not in names:
        remedy = "Give a directory that has config.json beside the *.safetensors files, as on the Hugging Face Hub."
        raise CheckpointError(f"{folder.path} is not a checkpoint: it has no config.json", remedy)


def _fail_not_directory(path: Path) -> NoReturn:
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        raise UnsupportedError(f"{path} is in GGUF format, not in safetensors", USE_ORIGINAL)
    raise CheckpointError(f"{path} is a file, not a directory", f"Give the checkpoint's directory: {path.parent}")


def _check_not_pickled(folder: Folder) -> None:
    pickled = [name for name in folder.names() if _PICKLED.fullmatch(name)]
    if pickled:
        remedy = (
            "Download the safetensors version, or convert a checkpoint that you trust: in Python with transformers, "
            f"AutoModelForCausalLM.from_pretrained({str(folder.path)!r}, dtype='auto').save_pretrained(NEW_DIRECTORY)."
        )
        problem = f"{folder.path} has only {pickled[0]}: only safetensors is read, never pickle"
        raise UnsupportedError(problem, remedy)


def find_layout(folder: Folder, config: ModelConfig, *, share: bool = False) -> Layout:
    """Where the weights are; of several layouts the first, in the order in which transformers looks for them. `share`:
    whether files that an index lists may be missing."""
    path, names = folder.path, folder.names()
    if SINGLE in names:
        return Layout({path / SINGLE: ""}, {})
    if INDEX in names:
        index = _read_index(folder, share)
        return Layout(dict.fromkeys(sorted(set(index.values())), ""), index)
    if numbered := _find_numbered(folder):
        return Layout(dict.fromkeys(numbered, ""), {})
    if SPLIT in names:
        return Layout(_find_split(folder, config), {})
    others = [name for name in names if name.endswith(".safetensors")]
    has = f" (only {listed(others, 3)})" if others else ""
    raise CheckpointError(
        f"{path} has no weights{has}: no {SINGLE}, no {INDEX}, no model-00001-of-*.safetensors, no {SPLIT}/",
        folder.complete,
    )


def _read_index(folder: Folder, share: bool) -> dict[str, Path]:
    """Tensor name -> shard, from model.safetensors.index.json; each shard exists, somewhere below the folder, or, of a
    share, is left out."""
    index = folder.path / INDEX
    weight_map = folder.read_json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problem = f"{index}: weight_map is {shown(weight_map)}, not an object that gives each tensor's file"
        raise FormatError(problem, folder.complete)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(f"{index}: the file of {shown(name)} is {shown(shard)}, not a file name", folder.complete)
    paths = {}
    for shard in sorted(set(weight_map.values())):
        _check_shard_name(shard, index)
        if folder.has(shard):
            paths[shard] = folder.path / shard
        elif not share:
            raise CheckpointError(f"{folder.path} lacks {shard}, which {INDEX} lists", folder.complete)
    return {name: paths[shard] for name, shard in weight_map.items() if shard in paths}


def _check_shard_name(shard: str, index: Path) -> None:
    """Refuse file names that lead out of the directory, on any system, and files that are not safetensors."""
    parts = re.split(r"[/\\]", shard)
    if PureWindowsPath(shard).drive or not shard.isprintable() or any(part in ("", ".", "..") for part in parts):
        problem = f"{index} names {shown(shard)}, which is not a file inside the checkpoint's directory"
        raise FormatError(problem, "Do not use this checkpoint, unless you can correct the index yourself.")
    if not shard.endswith(".safetensors"):
        problem = f"{index} names {shown(shard)}: only safetensors is read, never pickle"
        raise UnsupportedError(problem, "Use the safetensors version of the checkpoint.")


def _find_numbered(folder: Folder) -> list[Path]:
    """The complete set of model-00001-of-00004.safetensors and so on, or none."""
    path = folder.path
    matches = [match for name in folder.names() if (match := _NUMBERED.fullmatch(name))]
    if not matches:
        return []
    names, (width, total) = {match[0] for match in matches}, (len(matches[0][1]), matches[0][2])
    for number in range(1, int(total) + 1):
        name = f"model-{number:0{width}}-of-{total}.safetensors"
        if name not in names:
            raise CheckpointError(f"{path} lacks {name}: {len(names)} shards are there", folder.complete)
    if len(names) > int(total):
        problem = f"{path} has {len(names)} numbered shards, but {matches[0][0]} says that there are {int(total)}"
        raise CheckpointError(problem, "Remove the shards that do not belong to this checkpoint.")
    return [path / match[0] for match in matches]


def _find_split(folder: Folder, config: ModelConfig) -> dict[Path, str]:
    """The files of the split layout with the prefixes of their tensors' names."""
    within, names = folder.path / SPLIT, folder.names(SPLIT)
    for part in Architecture(config).iter_parts():
        if f"{part}.safetensors" not in names:
            raise CheckpointError(f"{within} lacks {part}.safetensors", folder.complete)
    files = [within / name for name in names if name.endswith(".safetensors")]
    return {file: prefix_of_part(file.stem) for file in files}
