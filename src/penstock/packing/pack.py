"""Packs a checkpoint of this machine: its weight files one by one, then what stands beside them, config.json last.

A directory without config.json is no checkpoint, so that a half-packed model is never taken for a whole one. After an
interruption the same call goes on where the last one stopped, and the result is the same.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.architectures.base import Architecture
from penstock.architectures.names import stacked_name
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.layout import COMPLETE, INDEX, SINGLE, LocalFolder, find_layout
from penstock.compute.kernels import default_threads
from penstock.disk.files import Files, read_file
from penstock.errors import CheckpointError, CheckpointWarning, UsageError
from penstock.gguf.model import gguf_files
from penstock.packed_format.layout import cut, version_for
from penstock.packed_format.reader import is_packed_file, read_packed
from penstock.packed_format.runs import PassOrder
from penstock.packed_format.sources import READ_THREADS, LocalSource
from penstock.packing.free_original import check_may_free, free_original
from penstock.packing.gguf_original import GgufOriginal
from penstock.packing.pack_file import pack_file
from penstock.packing.pack_folder import Original, PackFolder, open_pack_folder, packed_files
from penstock.packing.side_files import CONFIG, ORIGINAL_INDEX, packed_index, side_files
from penstock.safetensors_header import parse_header, read_header
from penstock.strict_json import read_json_object
from penstock.system.machine import return_large_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.architectures.config import ModelConfig
    from penstock.safetensors_header import Header

Progress = Callable[[int, int], None]

PACKED_SHARE = 0.70
"""Of a BF16 matrix, with some to spare: what packing takes of it."""

_SPARE_BYTES = 16 << 20  # what the file system itself needs


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was packed, bytes and seconds."""

    original_bytes: int
    """Of the weight files."""
    packed_bytes: int
    encoded_bytes: int
    """Those of the original that this call has encoded; an earlier one may have done the others."""
    seconds: float


def pack(
    src: str | PathLike[str],
    out: str | PathLike[str],
    *,
    replace: bool = False,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> PackResult:
    """Pack the checkpoint in the directory `src`, or the GGUF model there, into the directory `out`.

    `replace`: delete each original file once its packed copy has been read back from the disk and compared.
    `threads`: None for every CPU. `on_progress` gets the original's bytes that are done, and all of them.
    Raises UsageError for directories that do not go together, CheckpointError where `src` is no sound checkpoint in
    full precision, PenstockError where the disk is too full or fails; the same call then goes on from there.
    """
    src, out, begin = Path(src), Path(out), time.perf_counter()
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do anything", "Give at least 1, or leave the number out.")
    _check_places(src, out)
    gguf = gguf_files(src)
    if gguf is not None and replace:
        problem = f"{src} is a GGUF model, which --replace does not delete"
        raise UsageError(problem, "Leave --replace out, and delete it yourself once `penstock verify` has compared.")
    return_large_arrays()
    with open_pack_folder(out) as folder, ThreadPoolExecutor(threads or default_threads()) as pool:
        if folder.originals is None and (out / CONFIG).exists():
            originals = _whole(src, folder, replace)
            encoded = 0
            for original in originals:
                _free(src / original.name, folder, original, pool)
        elif gguf is not None:
            originals, encoded = _pack_gguf(GgufOriginal(src, gguf), folder, pool, on_progress)
        else:
            originals = _begin(src, folder, replace)
            packing = _Packing(src, folder, _config(src), pool, replace)
            meter = _Meter(sum(original.size for original in originals), on_progress)
            encoded = sum(packing.pack(original, meter) for original in originals)
            _finish(src, folder, originals)
    return PackResult(
        original_bytes=sum(original.size for original in originals),
        packed_bytes=sum((out / original.name).stat().st_size for original in originals),
        encoded_bytes=encoded,
        seconds=time.perf_counter() - begin,
    )


def _pack_gguf(
    gguf: GgufOriginal, folder: PackFolder, pool: ThreadPoolExecutor, on_progress: Progress | None
) -> tuple[Sequence[Original], int]:
    """Its only file, and how many bytes of that were encoded."""
    original, sides = gguf.original, gguf.side_files()
    folder.check([original])
    need = packed_size(parse_header(gguf.header, folder.path, original.size)) + sum(map(len, sides.values()))
    folder.check_room(need + _SPARE_BYTES - folder.bytes_written(), "Free some space or choose another disk.")
    folder.begin([original])
    meter, encoded, files = _Meter(original.size, on_progress), 0, Files()
    try:
        if folder.finished(original) is None:
            target, partial = folder.target(original.name), folder.partial(original.name)
            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="penstock-read") as readers:
                source, order = gguf.source(files, readers), PassOrder("", pass_ranks(gguf.config))
                encoded = original.size - pack_file(source, gguf.header, target, partial, order, pool, meter.add)
    finally:
        files.close()
    for name, content in sides.items():
        with folder.new_file(name) as file:
            file.write(content)
    folder.finish()
    return [original], encoded


def pass_ranks(config: ModelConfig) -> dict[str, int]:
    """When a pass uses each tensor, by canonical name."""
    architecture = Architecture(config)
    ranks = {name: rank for rank, name in enumerate(architecture.tensors)}
    for layer in range(config.num_hidden_layers):  # those that a file holds as one tensor, where the first one is
        for gate, _, down in architecture.experts(layer)[:1]:
            ranks |= {stacked_name(layer, "gate_up_proj"): ranks[gate], stacked_name(layer, "down_proj"): ranks[down]}
    return ranks


def packed_size(header: Header) -> int:
    """About what the packed form of a file takes, bytes; seldom more."""
    tensors = header.tensors.values()
    version = version_for(tensors)
    return int(sum(tensor.nbytes * (PACKED_SHARE if cut(tensor, version).in_tiers else 1) for tensor in tensors))


class _Meter:
    """Counts the bytes that are done, and tells."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._total, self._on_progress = total, on_progress
        self._done = 0

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _check_places(src: Path, out: Path) -> None:
    if not src.is_dir():
        return  # what it is, opening it says
    inner, outer = out.resolve(), src.resolve()
    if inner == outer or outer in inner.parents:
        problem = f"{out} is {'the same directory as' if inner == outer else 'inside'} {src}"
        raise UsageError(problem, "Choose a directory beside it; --replace frees each original file when it is packed.")


def _begin(src: Path, folder: PackFolder, replace: bool) -> Sequence[Original]:
    """The files to pack: those of an earlier call that was interrupted, or those of the checkpoint."""
    originals = folder.originals
    if originals is None:
        originals = tuple(_originals(src))
    here = [_stamped(src, original) for original in originals if (src / original.name).exists()]
    folder.check(here)
    for original in originals:
        if not (src / original.name).exists() and folder.finished(original) is None:
            raise CheckpointError(f"{src} lacks {original.name}, which has not been packed yet", COMPLETE)
    if replace:
        for original in here:
            check_may_free(src / original.name)
    _check_room(src, folder, here, replace)
    folder.begin(here)
    return originals


def _whole(src: Path, folder: PackFolder, replace: bool) -> Sequence[Original]:
    """The originals of a directory that was packed to the end, where they have yet to be deleted."""
    if not replace:
        problem = f"{folder.path} is there already, and complete"
        remedy = f"To compare: `penstock verify {folder.path} --against {src}`. To pack again, delete it first."
        raise UsageError(problem, remedy)
    packed = packed_files(folder.path)
    for name in packed:
        check_may_free(src / name)
    return [Original(name, "", file.original_size, "") for name, file in packed.items()]


def _originals(src: Path) -> Iterator[Original]:
    """The weight files of a checkpoint, after everything about it was checked."""
    with _no_warnings():
        checkpoint = open_checkpoint(src)
        layout = find_layout(LocalFolder(src), checkpoint.config)
    for path in checkpoint.files:
        if is_packed_file(read_header(path)):
            problem = f"{src} is packed already ({path.name} is a packed file)"
            raise UsageError(problem, "Use it as it is; `penstock unpack` gives the original files back.")
    for path, prefix in layout.prefixes.items():
        yield _stamped(src, Original(path.relative_to(src).as_posix(), prefix, 0, ""))


def _stamped(src: Path, original: Original) -> Original:
    """The original with the size and time that its file has now."""
    status = (src / original.name).stat()
    return Original(original.name, original.prefix, status.st_size, str(status.st_mtime_ns))


def _check_room(src: Path, folder: PackFolder, originals: Sequence[Original], replace: bool) -> None:
    """Raise PenstockError where the disk is too small for what is yet to be written."""
    frees = replace and src.stat().st_dev == folder.path.stat().st_dev
    need, most = sum(file.stat().st_size for file in side_files(src)) + _SPARE_BYTES - folder.bytes_written(), 0
    for original in originals:
        need += packed_size(read_header(src / original.name))
        most = max(most, need)
        need -= original.size if frees else 0
    remedy = "Free some space or choose another disk" + ("." if frees else "; --replace frees originals on the way.")
    folder.check_room(most, remedy)


def _config(src: Path) -> ModelConfig:
    with _no_warnings():
        return parse_config(read_json_object(src / CONFIG), str(src / CONFIG))


@dataclass(frozen=True, slots=True)
class _Packing:
    """One call of `pack`, once everything is known to be in order."""

    src: Path
    folder: PackFolder
    config: ModelConfig
    pool: ThreadPoolExecutor
    replace: bool

    def pack(self, original: Original, meter: _Meter) -> int:
        """Pack a file, unless an earlier call has; how many bytes of it were encoded."""
        encoded = 0
        if self.folder.finished(original) is None:
            encoded = original.size - self._encode(original, meter)
        else:
            meter.add(original.size)
        if self.replace:
            _free(self.src / original.name, self.folder, original, self.pool)
        return encoded

    def _encode(self, original: Original, meter: _Meter) -> int:
        """Bytes that did not have to be encoded."""
        target, partial = self.folder.target(original.name), self.folder.partial(original.name)
        order = PassOrder(original.prefix, pass_ranks(self.config))
        files = Files()
        try:
            with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="penstock-read") as readers:
                source = LocalSource(self.src / original.name, original.name, files, readers)
                return pack_file(source, source.header(), target, partial, order, self.pool, meter.add)
        finally:
            files.close()


def _free(path: Path, folder: PackFolder, original: Original, pool: ThreadPoolExecutor) -> None:
    """Delete an original, if it is still there and if its packed copy gives it back."""
    if path.exists():
        free_original(path, read_packed(folder.target(original.name)), pool)


def _finish(src: Path, folder: PackFolder, originals: Sequence[Original]) -> None:
    """Write what stands beside the weights, config.json last."""
    for path in side_files(src):
        name = ORIGINAL_INDEX if path.name == INDEX else path.name
        if path.name == CONFIG and _has_index(src, originals):
            with folder.new_file(INDEX) as file:
                file.write(packed_index((o.name, read_packed(folder.path / o.name)) for o in originals))
        with folder.new_file(name) as file:
            file.write(read_file(path))
    folder.finish()


def _has_index(src: Path, originals: Sequence[Original]) -> bool:
    """Whether the weights are found by the index: not where a whole file is there too, which comes first."""
    return (src / INDEX).exists() and all(original.name != SINGLE for original in originals)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What a pass would pass over is packed all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        yield
