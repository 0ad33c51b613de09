"""Checks of whole checkpoints that several tests share."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.checkpoints.checkpoint import Checkpoint, open_checkpoint
from penstock.errors import CheckpointError, CheckpointWarning

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
SHARD_2 = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def check_same(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The checkpoint at `path` has just these tensors, each where its TensorInfo says, and nothing to warn of."""
    checkpoint, messages = _open(path)
    assert messages == []
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, info in checkpoint.tensors.items():
        assert info.name == name
        assert info.shape == tensors[name].shape
        assert info.path in checkpoint.files
        assert info.path.read_bytes()[info.begin : info.end] == tensors[name].tobytes()


def check_refused(path: Path, kind: type[CheckpointError], message: str, remedy: str = "") -> None:
    """Opening `path` raises just this kind of error, in two lines that hold these words and name the place."""
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert type(caught.value) is kind
    assert message in caught.value.problem
    assert str(path.parent) in caught.value.problem
    assert remedy in caught.value.remedy
    assert caught.value.remedy
    assert "\n" not in caught.value.problem + caught.value.remedy


def warnings_of(path: Path) -> list[str]:
    return _open(path)[1]


def edit_index(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((path / INDEX).read_text())
    edit(index)
    (path / INDEX).write_text(json.dumps(index))


def _open(path: Path) -> tuple[Checkpoint, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = open_checkpoint(path)
    assert all(warning.category is CheckpointWarning for warning in caught)
    return checkpoint, [str(warning.message) for warning in caught]
