from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.checkpoint_checks import INDEX, Q_PROJ, SHARD_2, check_refused, check_same, edit_index, warnings_of
from helpers.checkpoints import safetensors_bytes, tiny_config, write_checkpoint
from helpers.gguf import Info, header_bytes
from penstock.errors import CheckpointError, FormatError, UnsupportedError

LAYOUTS = [("single", "whole"), ("indexed", "whole"), ("numbered", "whole")]
LAYOUTS += [("split", "whole"), ("split", "bare"), ("split", "no_model")]


@pytest.mark.parametrize(("layout", "names"), LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_layout(layout: str, names: str, tied: bool, tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=tied)
    check_same(tmp_path, write_checkpoint(tmp_path, config, layout=layout, names=names))


def test_links_are_followed(tmp_path: Path) -> None:
    """The Hub's cache keeps links to files elsewhere."""
    tensors = write_checkpoint(tmp_path / "blobs", layout="indexed")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    check_same(tmp_path / "snapshot", tensors)


@pytest.mark.parametrize("layout", ["indexed", "numbered"])
def test_links_that_lead_nowhere(layout: str, tmp_path: Path) -> None:
    """As where the Hub's cache lacks a file that was never downloaded."""
    write_checkpoint(tmp_path, layout=layout)
    (tmp_path / SHARD_2).unlink()
    (tmp_path / SHARD_2).symlink_to(tmp_path / "blob")
    check_refused(tmp_path, CheckpointError, f"lacks {SHARD_2}")


def test_index_may_name_files_in_a_folder_below(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, layout="indexed")
    (tmp_path / "parts").mkdir()
    shutil.move(tmp_path / SHARD_2, tmp_path / "parts" / SHARD_2)

    def move(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        places.update({name: f"parts/{SHARD_2}" for name, shard in places.items() if shard == SHARD_2})

    edit_index(tmp_path, move)
    check_same(tmp_path, tensors)


def test_single_file_wins_over_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed", seed=1)
    check_same(tmp_path, write_checkpoint(tmp_path, seed=2))


def test_missing_path(tmp_path: Path) -> None:
    check_refused(tmp_path / "none", CheckpointError, "none does not exist", "Give the directory of a checkpoint")


def test_file_instead_of_a_directory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    check_refused(path, CheckpointError, "is a file, not a directory", f"Give the checkpoint's directory: {tmp_path}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_instead_of_a_directory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    check_refused(tmp_path / "x", FormatError, "x is a device, pipe or socket, not a file")


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "model"])
def test_quantized_gguf_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(header_bytes({"general.architecture": "llama"}, [Info("a", (256,), 12, 0)]))
    message = f"{name} holds 1 tensors as Q4_K ('a' is one): quantized, not the full-precision weights"
    check_refused(tmp_path / name, UnsupportedError, message, "Use a BF16, F16 or F32 GGUF of the model")


@pytest.mark.parametrize("config", [False, True])
def test_directory_with_quantized_gguf_only(config: bool, tmp_path: Path) -> None:
    content = header_bytes({"general.architecture": "llama"}, [Info("a", (256,), 12, 0)])
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(content)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    check_refused(tmp_path, UnsupportedError, "quantized, not the full-precision weights")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"]
)
def test_pickles_are_never_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / name).write_bytes(b"\x80\x02.")
    message = f"has only {name}: only safetensors is read, never pickle"
    check_refused(tmp_path, UnsupportedError, message, "save_pretrained(NEW_DIRECTORY)")


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    check_same(tmp_path, tensors)


def test_empty_directory(tmp_path: Path) -> None:
    check_refused(tmp_path, CheckpointError, "is not a checkpoint: it has no config.json", "config.json beside")


def test_no_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    check_refused(tmp_path, CheckpointError, "is not a checkpoint: it has no config.json")


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    check_refused(tmp_path, CheckpointError, "has no weights: no model.safetensors, no model.safetensors.index.json")


def test_other_safetensors_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors_bytes({}))
    check_refused(tmp_path, CheckpointError, "has no weights (only 'adapter_model.safetensors'): no model.safetensors")


@pytest.mark.parametrize("layout", ["indexed", "numbered"])
def test_missing_shard(layout: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout=layout)
    (tmp_path / SHARD_2).unlink()
    detail = {"indexed": f", which {INDEX} lists", "numbered": ": 2 shards are there"}[layout]
    check_refused(tmp_path, CheckpointError, f"lacks {SHARD_2}{detail}", "Complete the download")


def test_numbered_shards_of_two_sets(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="numbered")
    shutil.copy(tmp_path / SHARD_2, tmp_path / "model-00004-of-00004.safetensors")
    message = "has 4 numbered shards, but model-00001-of-00003.safetensors says that there are 3"
    check_refused(tmp_path, CheckpointError, message, "Remove the shards that do not belong")


def test_numbered_shard_of_a_huge_set(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / f"model-00001-of-{10**50}.safetensors").write_bytes(b"")
    check_refused(tmp_path, CheckpointError, "lacks model-00002-of-10000")


@pytest.mark.parametrize("part", ["embed_tokens", "layers1", "norm", "lm_head"])
def test_missing_part_of_the_split_layout(part: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="split")
    (tmp_path / "separated_weights" / f"{part}.safetensors").unlink()
    check_refused(tmp_path, CheckpointError, f"separated_weights lacks {part}.safetensors", "Complete the download")


def test_part_too_many_in_the_split_layout(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="split", names="bare")
    parts = tmp_path / "separated_weights"
    shutil.copy(parts / "norm.safetensors", parts / "layers2.safetensors")
    shutil.copy(parts / "norm.safetensors", parts / "extra.safetensors")
    names = "'model.extra.weight', 'model.layers.2.weight'"
    assert warnings_of(tmp_path) == [f"{tmp_path}: passing over tensors that are not part of the model: {names}"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", f"{INDEX} is not JSON"),
        ("{}", f"{INDEX}: weight_map is None, not an object that gives each tensor's file"),
        ('{"weight_map": []}', f"{INDEX}: weight_map is [], not an object"),
        ('{"weight_map": {}}', f"{INDEX}: weight_map is {{}}, not an object"),
        ('{"weight_map": {"w": 1}}', f"{INDEX}: the file of 'w' is 1, not a file name"),
    ],
)
def test_malformed_index(index: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    (tmp_path / INDEX).write_text(index)
    check_refused(tmp_path, FormatError, message)


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "a/../../x.safetensors",
        "/etc/x.safetensors",
        "..\\x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "C:x.safetensors",
        "C:\\x.safetensors",
        "x\0.safetensors",
        "x\n.safetensors",
        "./x.safetensors",
        "..",
        "",
    ],
)
def test_index_does_not_lead_out_of_the_directory(shard: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    edit_index(tmp_path, lambda index: index["weight_map"].update({Q_PROJ: shard}))
    check_refused(tmp_path, FormatError, f"names {shard!r}, which is not a file inside the checkpoint's directory")


def test_index_of_pickles(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    edit_index(tmp_path, lambda index: index["weight_map"].update({Q_PROJ: "pytorch_model.bin"}))
    check_refused(tmp_path, UnsupportedError, "names 'pytorch_model.bin': only safetensors is read, never pickle")


def test_index_names_an_impossible_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layout="indexed")
    edit_index(tmp_path, lambda index: index["weight_map"].update({Q_PROJ: "x" * 5000 + ".safetensors"}))
    check_refused(tmp_path, CheckpointError, "cannot be read: File name too long", "Check that you may read")
