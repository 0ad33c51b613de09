"""Whether a model on the disk is what was written, and, beside the original, whether every bit of it is the same."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from penstock.architectures.names import canonical_name
from penstock.architectures.registry import parse_config
from penstock.checkpoints.layout import LocalFolder, check_directory, find_layout
from penstock.compute.kernels import default_threads
from penstock.disk.files import Files, read_file
from penstock.disk.in_order import in_order
from penstock.errors import ChecksumError, FormatError, ReadError, UsageError
from penstock.gguf.model import gguf_files, read_model
from penstock.gguf.stored import read_original
from penstock.packed_format.chunks import RUN_BYTES, RUNS_AHEAD, Run, RunData, read_run, runs, same_bytes
from penstock.packed_format.draft_file import find_corrections
from penstock.packed_format.reader import PackedFile, is_packed_file, read_packed
from penstock.packed_format.sources import READ_THREADS, READS_AHEAD
from penstock.packed_format.tensor import PackedTensor
from penstock.packing.side_files import CONFIG
from penstock.safetensors_header import TensorInfo, read_header
from penstock.strict_json import read_json_object, shown
from penstock.system.machine import return_large_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike

    from penstock.compute.kernels import U8

Tensor: TypeAlias = TensorInfo | PackedTensor
Tensors: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` has found."""

    damage: tuple[str, ...]
    """Places that are not what was written."""
    differences: tuple[str, ...]
    """From the original."""
    packed: bool
    """Whether there are checksums."""
    n_files: int
    n_tensors: int
    nbytes: int
    """Of the weight files."""
    seconds: float

    @property
    def sound(self) -> bool:
        return not self.damage and not self.differences


def verify(
    model: str | PathLike[str],
    against: str | PathLike[str] | None = None,
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check all checksums of the model in the directory `model`, and that every tensor is that of `against`.

    Goes on where it finds something. `threads`: None for every CPU. `on_progress` gets the bytes that are checked, and
    all of them. Raises CheckpointError where there is no model, UsageError for wrong use, ReadError.
    """
    begin = time.perf_counter()
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do anything", "Give at least 1, or leave the number out.")
    return_large_arrays()
    files = Files()
    try:
        with ThreadPoolExecutor(threads or default_threads()) as pool:
            check = _Check(Path(model), None if against is None else Path(against), files)
            check.run(pool, on_progress)
    finally:
        files.close()
    return check.report(time.perf_counter() - begin)


class _Check:
    def __init__(self, model: Path, against: Path | None, files: Files) -> None:
        self._files = files
        self._against = against
        self._damage: list[str] = []
        self._differences: list[str] = []
        self._paths = _weight_files(model)
        self._nbytes = sum(path.stat().st_size for path in self._paths)
        self._packed: list[PackedFile] = []
        self._tensors = self._open(model)
        self._originals = {} if against is None else _original_tensors(against)
        if against is not None:
            self._compare_lists(against)
            for file in self._packed:
                self._compare_header(file, against, model)

    def run(self, pool: ThreadPoolExecutor, on_progress: Callable[[int, int], None] | None) -> None:
        """Go through all tensors."""
        pieces = [piece for name, tensor in self._tensors.items() for piece in self._pieces(name, tensor)]
        done = self._nbytes - sum(piece.nbytes for piece in pieces)
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="penstock-read") as readers:
            checks = in_order(readers, (partial(piece.read, self._files) for piece in pieces), READS_AHEAD)
            for piece, (damage, differences) in zip(pieces, in_order(pool, checks, RUNS_AHEAD), strict=True):
                self._damage += damage
                self._differences += differences
                done += piece.nbytes
                if on_progress is not None:
                    on_progress(done, self._nbytes)

    def report(self, seconds: float) -> Report:
        return Report(
            damage=tuple(self._damage),
            differences=tuple(self._differences),
            packed=bool(self._packed),
            n_files=len(self._paths),
            n_tensors=len(self._tensors),
            nbytes=self._nbytes,
            seconds=seconds,
        )

    def _open(self, model: Path) -> Tensors:
        """The tensors of all files by canonical name, as far as their files can be opened."""
        if (files := gguf_files(model)) is not None:
            return dict(read_model(files).tensors)
        tensors: Tensors = {}
        for path, prefix in self._paths.items():
            try:
                header = read_header(path)
                here: Mapping[str, Tensor] = header.tensors
                if is_packed_file(header):
                    self._packed.append(self._read_packed(path))
                    here = self._packed[-1].tensors
            except FormatError as error:
                self._damage.append(f"{error.problem}; nothing else of this file could be checked")
                continue
            tensors |= {canonical_name(name, prefix): tensor for name, tensor in here.items()}
        self._check_corrections(model, tensors)
        return tensors

    def _check_corrections(self, model: Path, tensors: Tensors) -> None:
        """What `penstock tune` left, if it did; where weight files could not be opened, that is noted already."""
        if self._damage:
            return
        try:
            find_corrections(model, [*self._paths], tensors)
        except (FormatError, ReadError) as error:
            self._damage.append(f"{error.problem}; only guesses are made with it")

    def _read_packed(self, path: Path) -> PackedFile:
        try:
            return read_packed(path)
        except ChecksumError as error:
            self._damage.append(error.problem)
            return read_packed(path, check_seal=False)

    def _compare_lists(self, against: Path) -> None:
        """Note tensors that only one side has, or that differ in dtype or shape."""
        for name in self._originals.keys() - self._tensors.keys():
            self._differences.append(f"{shown(name)} of {against} is missing")
        for name, tensor in self._tensors.items():
            original = self._originals.get(name)
            if original is None:
                self._differences.append(f"{against} has no {shown(name)}")
            elif (original.dtype, original.shape) != (tensor.dtype, tensor.shape):
                del self._originals[name]
                is_, was = (f"{t.dtype.value} {list(t.shape)}" for t in (tensor, original))
                self._differences.append(f"{tensor.path}: {shown(name)} is {is_}, but {was} in {original.path}")

    def _compare_header(self, file: PackedFile, against: Path, model: Path) -> None:
        if gguf_files(against) is not None:
            return  # whose header is made up (gguf_original.py)
        original = against / file.path.relative_to(model)
        if not original.exists():
            self._differences.append(f"{original} is missing, which {file.path} was made from")
            return
        if read_file(original, len(file.original_header)) != file.original_header:
            self._differences.append(f"{file.path}: the header that it keeps is not that of {original}")

    def _pieces(self, name: str, tensor: Tensor) -> Iterator[_PackedPiece | _PlainPiece]:
        """What is read and checked of a tensor."""
        original = self._originals.get(name)
        if isinstance(tensor, PackedTensor):
            for run in runs(tensor):
                yield _PackedPiece(run, original)
        elif original is not None:
            for begin in range(0, tensor.nbytes, RUN_BYTES):
                yield _PlainPiece(tensor, original, begin, min(RUN_BYTES, tensor.nbytes - begin))


_Found: TypeAlias = "tuple[list[str], list[str]]"
"""Damage, and differences."""


@dataclass(frozen=True)
class _PackedPiece:
    """A run, and the original tensor if there is one."""

    run: Run
    original: TensorInfo | None

    @property
    def nbytes(self) -> int:
        tensor, chunks = self.run.tensor, (self.run.begin, self.run.end)
        return tensor.fine_extent(*chunks).nbytes + (tensor.coarse_extent(*chunks).nbytes if tensor.in_tiers else 0)

    @property
    def begin(self) -> int:
        """Within the original tensor."""
        return self.run.original_begin - self.run.tensor.original_begin

    def read(self, files: Files) -> Callable[[], _Found]:
        """What checks the bytes that this reads."""
        original = self.original
        expected = None if original is None else read_original(original, self.begin, self.run.original_nbytes, files)
        try:
            return partial(self._check, read_run(files, self.run), expected)
        except ReadError as error:  # a disk that has lost a block may still have the others
            found = [error.problem], list[str]()
            return lambda: found

    def _check(self, data: RunData, expected: U8 | None) -> _Found:
        damage = [fault.problem for chunk in range(self.run.begin, self.run.end) for fault in data.faults(chunk)]
        if damage:
            return damage, []
        try:
            decoded = data.original()
        except FormatError as error:
            return [error.problem], []
        if self.original is None or expected is None:
            return [], []
        return [], _difference(self.run.tensor, self.original, self.begin, decoded, expected)


@dataclass(frozen=True)
class _PlainPiece:
    """Some bytes of a tensor that has no checksums."""

    tensor: TensorInfo
    original: TensorInfo
    begin: int
    nbytes: int

    def read(self, files: Files) -> Callable[[], _Found]:
        """What checks the bytes that this reads."""
        places = (self.tensor, self.original)
        return partial(self._check, *(read_original(tensor, self.begin, self.nbytes, files) for tensor in places))

    def _check(self, data: U8, expected: U8) -> _Found:
        return [], _difference(self.tensor, self.original, self.begin, data, expected)


def _difference(tensor: Tensor, original: TensorInfo, begin: int, data: U8, expected: U8) -> list[str]:
    """What to say of bytes of a tensor, from `begin` on, that are not those of the original."""
    if same_bytes(data, expected):
        return []
    place = f"bytes {begin:,} to {begin + data.nbytes:,}"
    return [f"{tensor.path}: {shown(tensor.name)} is not that of {original.path} (within its {place})"]


def _weight_files(model: Path) -> Mapping[Path, str]:
    """The weight files of a model, each with the prefix that its tensors' names may lack."""
    if (files := gguf_files(model)) is not None:
        return dict.fromkeys(files, "")
    check_directory(model)
    config = parse_config(read_json_object(model / CONFIG), str(model / CONFIG))
    return find_layout(LocalFolder(model), config).prefixes


def _original_tensors(against: Path) -> dict[str, TensorInfo]:
    if (files := gguf_files(against)) is not None:
        return dict(read_model(files).tensors)
    tensors: dict[str, TensorInfo] = {}
    for path, prefix in _weight_files(against).items():
        header = read_header(path)
        if is_packed_file(header):
            raise UsageError(f"{against} is packed itself", "Give the directory of the original checkpoint.")
        tensors |= {canonical_name(name, prefix): tensor for name, tensor in header.tensors.items()}
    return tensors
