"""Directories that have some layers of a model alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.checkpoints import tiny_config, write_checkpoint
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.share_file import SHARE, layers_in_words, read_share, share_bytes
from penstock.errors import CheckpointError, FormatError
from penstock.models.stage import Share
from penstock.stages.host import StageHost
from penstock.stages.messages import HostSettings


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """The second of three files of a model of six layers, and which layers are there as a whole."""
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=6), layout="indexed", shards=3)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    whole = open_checkpoint(tmp_path)
    elsewhere = {name for name, tensor in whole.tensors.items() if tensor.path != files[1]}
    held = [
        layer
        for layer in range(6)
        if not elsewhere & {*whole.architecture.tensors_of([layer], embedding=False, head=False)}
    ]
    assert held
    for file in (files[0], files[2]):
        file.unlink()
    (tmp_path / SHARE).write_bytes(share_bytes(held))
    return tmp_path


def settings(model: Path, *layers: int) -> HostSettings:
    return HostSettings(
        str(model), Share(layers, embedding=False, head=False), context=64, kv_dtype="bf16", ceiling=2 << 30
    )


def test_a_share_opens_where_one_will_do(share: Path) -> None:
    checkpoint = open_checkpoint(share, share=True)
    assert checkpoint.layers == read_share(share)
    assert {*checkpoint.tensors} >= {
        *checkpoint.architecture.tensors_of(checkpoint.layers or (), embedding=False, head=False)
    }
    assert len(checkpoint.files) == 1
    with pytest.raises(CheckpointError, match="alone, for this machine's part in a cluster"):
        open_checkpoint(share)


def test_a_host_of_a_share(share: Path) -> None:
    held = read_share(share) or ()
    StageHost(settings(share, held[0])).close()
    with pytest.raises(CheckpointError, match=rf"holds layers {layers_in_words(held)} alone, not 0, 5"):
        StageHost(settings(share, 0, held[0], 5))


def test_a_file_that_a_share_needs_is_missed(share: Path) -> None:
    (share / SHARE).write_bytes(share_bytes(range(6)))
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'model\.layers\.0"):
        open_checkpoint(share, share=True)
    for file in share.glob("model-*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError):
        open_checkpoint(share, share=True)


@pytest.mark.parametrize("layers", [None, [], 3, "0", [1.0], [True], [1, 1], [2, 1], [-1], [None], {}, [0, 10**30]])
def test_what_is_no_list_of_layers(share: Path, layers: object) -> None:
    (share / SHARE).write_text(json.dumps({"layers": layers}))
    error = CheckpointError if layers == [0, 10**30] else FormatError
    with pytest.raises(error, match=r"share\.json"):
        open_checkpoint(share, share=True)


def test_a_share_that_is_no_json(share: Path) -> None:
    (share / SHARE).write_bytes(b"\xff{")
    with pytest.raises(FormatError):
        open_checkpoint(share)


@pytest.mark.parametrize(
    ("layers", "words"), [([3], "3"), ([0, 1, 2], "0-2"), ([4, 0, 5], "0, 4-5"), ([0, 2, 4], "0, 2, 4")]
)
def test_layers_in_words(layers: list[int], words: str) -> None:
    assert layers_in_words(layers) == words
