"""Models to pull, and processes that pull them, for the tests of `pull`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.hub_server import Hub

REPO = "owner/model"
SMALL = {"REQUEST_BYTES": 1 << 18, "RUN_BYTES": 1 << 18, "SYNC_BYTES": 1 << 19}
"""So that a model of a few megabytes takes many requests, runs and entries of the journal."""

SCRIPT = f"""
import sys
from penstock import cli
from penstock.hub import files as hub_files
from penstock.packed_format import runs as pack_runs
from penstock.packed_format import chunks as packed_chunks
from penstock.packed_format import writer as packed_writer
from penstock.hub import pull_weights
for module in (hub_files, pack_runs, packed_chunks, packed_writer, pull_weights):
    for name, value in {SMALL!r}.items():
        if hasattr(module, name):
            setattr(module, name, value)
sys.argv[0] = "penstock"
cli.main()
"""


def model_config(**changes: Any) -> dict[str, Any]:
    """Of a model with matrices that are large enough to be packed; 4.6 MB."""
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 3}
    return tiny_config(**sizes, **changes)


def write_model(path: Path, layout: str = "indexed", **options: Any) -> Path:
    """A checkpoint with all that a repository may hold besides."""
    write_checkpoint(path, model_config(), layout=layout, generation_config={"temperature": 0.5}, **options)
    (path / "README.md").write_text("# A model\n")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (path / "tokenizer.json").write_text(json.dumps({"model": ["x" * 1000] * 200}))
    (path / "pytorch_model.bin").write_bytes(b"never read")
    (path / "original").mkdir()
    (path / "original" / "params.json").write_text("{}")
    return path


def start(hub: Hub, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`penstock pull owner/model` in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, "pull", REPO, *map(str, arguments)]
    return subprocess.Popen(
        command, env=hub.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def contents(path: Path) -> dict[str, bytes]:
    """Every file below `path`."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
