"""What a checkpoint is, in figures: of its config and headers alone, no weight is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from penstock.architectures.registry import family_name
from penstock.checkpoints.checkpoint import Checkpoint, open_checkpoint
from penstock.gguf.model import gguf_files, read_model
from penstock.packed_format.draft_file import is_tuned
from penstock.packed_format.tensor import PackedTensor
from penstock.strict_json import read_json_object

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Description:
    """See `describe`."""

    checkpoint: Checkpoint
    family: str
    """As its config.json calls it: "llama"."""
    tuned: bool
    """Whether `tune` has made its coarse weights guess better."""

    @property
    def parameters(self) -> int:
        """Weights of all kinds; an embedding that is the head too counts once."""
        return sum(prod(tensor.shape) for tensor in self.checkpoint.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Tensors of each type, those of most first."""
        return dict(Counter(tensor.dtype.value for tensor in self.checkpoint.tensors.values()).most_common())

    @property
    def weight_bytes(self) -> int:
        """Of the tensors as they are stored."""
        return sum(tensor.nbytes for tensor in self.checkpoint.tensors.values())

    @property
    def packed_ratio(self) -> float | None:
        """Of the bytes that the tensors have here to those that they had before they were packed."""
        if self.form != "packed":
            return None
        return self.weight_bytes / sum(tensor.original_nbytes for tensor in self.checkpoint.tensors.values())

    @property
    def form(self) -> str:
        """How the weights are stored: "packed", "GGUF" or "raw"."""
        if any(isinstance(tensor, PackedTensor) for tensor in self.checkpoint.tensors.values()):
            return "packed"
        return "GGUF" if self.checkpoint.files[0].suffix == ".gguf" else "raw"


def describe(path: Path) -> Description:
    """The checkpoint at `path`. Raises and warns as `open_checkpoint` does."""
    checkpoint = open_checkpoint(path)
    files = gguf_files(path)
    config = read_json_object(path / "config.json") if files is None else read_model(files).config
    tuned = is_tuned(path, checkpoint.files) if files is None else False
    return Description(checkpoint, family_name(config, str(path)), tuned)
