"""The checkpoint that a GGUF model stands for, as what it would be in safetensors: one file, and what stands beside it.

It is nowhere on a disk. Its header is made up, in the order of a pass; its tensors come from the GGUF as they are
asked for, rows and norms as the checkpoint has them. So a packed copy is one of any checkpoint, and unpacked it is one
in safetensors.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.layout import SINGLE
from penstock.disk.in_order import in_order
from penstock.errors import UnsupportedError
from penstock.gguf.config import generation_json
from penstock.gguf.model import read_model
from penstock.gguf.reader import read_gguf
from penstock.gguf.stored import read_original
from penstock.gguf.tokenizer import has_tokenizer, tokenizer_config_json, tokenizer_json
from penstock.packed_format.sources import READS_AHEAD
from penstock.packing.pack_folder import Original
from penstock.packing.side_files import CONFIG
from penstock.safetensors_header import TensorInfo, encode_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from penstock.compute.kernels import U8
    from penstock.disk.files import Files


class GgufOriginal:
    """A GGUF model that is to be packed."""

    def __init__(self, src: Path, files: Sequence[Path]) -> None:
        """Raises as `open_checkpoint` does."""
        checkpoint = open_checkpoint(src)
        self.config = checkpoint.config
        self._files = files
        self._tensors = {n: tensor for n, tensor in checkpoint.tensors.items() if isinstance(tensor, TensorInfo)}
        self.header = encode_header({n: (t.dtype.value, t.shape, t.nbytes) for n, t in self._tensors.items()})
        size = len(self.header) + sum(tensor.nbytes for tensor in self._tensors.values())
        stamp = ",".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
        self.original = Original(SINGLE, "", size, stamp)

    def source(self, files: Files, pool: ThreadPoolExecutor) -> GgufSource:
        """`pool`: threads that read."""
        return GgufSource(self.original, len(self.header), [*self._tensors.values()], files, pool)

    def side_files(self) -> dict[str, bytes]:
        """What stands beside the weights, config.json last. Raises FormatError."""
        source, metadata = str(self._files[0]), read_gguf(self._files[0], arrays=True).metadata
        contents: dict[str, Mapping[str, Any]] = {"generation_config.json": generation_json(metadata)}
        if has_tokenizer(metadata):
            try:
                contents["tokenizer.json"] = tokenizer_json(metadata, source)
                contents["tokenizer_config.json"] = tokenizer_config_json(metadata, source)
            except UnsupportedError:
                pass  # token ids will do, as they do for the GGUF itself
        contents[CONFIG] = dict(read_model(self._files).config)
        # A tokenizer is no smaller for being indented.
        indents = {name: None if name == "tokenizer.json" else 2 for name in contents}
        return {
            name: json.dumps(content, indent=indents[name], ensure_ascii=False).encode()
            for name, content in contents.items()
        }


class GgufSource:
    """Its only weight file; a `Source`."""

    def __init__(
        self, original: Original, begin: int, tensors: Sequence[TensorInfo], files: Files, pool: ThreadPoolExecutor
    ) -> None:
        """`begin`: where the first of `tensors` begins, which follow one another."""
        self.name, self.size = original.name, original.size
        self._tensors, self._files, self._pool = tensors, files, pool
        self._begins = [begin]
        for tensor in tensors[:-1]:
            self._begins.append(self._begins[-1] + tensor.nbytes)

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[U8]:
        """Each range lies within a tensor."""
        return in_order(self._pool, (partial(self._read, begin, nbytes) for begin, nbytes in ranges), READS_AHEAD)

    def _read(self, begin: int, nbytes: int) -> U8:
        index = bisect_right(self._begins, begin) - 1
        return read_original(self._tensors[index], begin - self._begins[index], nbytes, self._files)
