"""The original files of a packed model, byte for byte."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from penstock.checkpoints.layout import INDEX
from penstock.compute.kernels import default_threads
from penstock.disk.files import Files, read_file
from penstock.disk.new_files import give_name, settle, write_through
from penstock.errors import UsageError
from penstock.packed_format.chunks import original_bytes
from penstock.packed_format.reader import PackedFile
from penstock.packing.free_original import is_original
from penstock.packing.pack_folder import PackFolder, open_pack_folder, packed_files
from penstock.packing.side_files import ORIGINAL_INDEX, side_files
from penstock.strict_json import listed
from penstock.system.machine import return_large_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

_SPARE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class UnpackResult:
    """What was restored, bytes and seconds."""

    files: tuple[Path, ...]
    """The weight files."""
    original_bytes: int
    """Of all of them; `restored_bytes` of those that this call has written, the others having been there already."""
    restored_bytes: int
    seconds: float


def unpack(
    packed: str | PathLike[str],
    out: str | PathLike[str],
    *,
    shard: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> UnpackResult:
    """Write the original checkpoint of the packed model in the directory `packed` to the directory `out`.

    `shard`: only this weight file. Files that are there already are kept if they are the original ones, bit for bit.
    `threads`: None for every CPU. `on_progress` gets the original's bytes that are done, and all of them.
    Raises UsageError for wrong use, ChecksumError for damage, PenstockError where the disk is too full or fails.
    """
    packed, out, begin = Path(packed), Path(out), time.perf_counter()
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do anything", "Give at least 1, or leave the number out.")
    files = _select(packed_files(packed), shard, packed)
    if out.resolve() == packed.resolve():
        raise UsageError(f"{out} is the packed model itself", "Choose another directory.")
    total, done, restored = sum(file.original_size for file in files.values()), 0, 0

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress is not None:
            on_progress(done, total)

    return_large_arrays()
    with open_pack_folder(out) as folder, ThreadPoolExecutor(threads or default_threads()) as pool:
        side = {} if shard else _side_files(packed)
        _check_clear(side, folder)
        missing = [name for name in files if not (out / name).exists()]
        need = sum(files[name].original_size for name in missing) + sum(path.stat().st_size for path in side.values())
        remedy = "Free some space, choose another disk, or restore one file at a time (--shard)."
        folder.check_room(need + _SPARE_BYTES, remedy)
        for name, file in files.items():
            if name in missing:
                _restore(name, file, folder, pool, tell)
                restored += file.original_size
            elif is_original(out / name, file, pool):
                tell(file.original_size)
            else:
                _fail_taken(out / name, file.path)
        for name, path in side.items():
            with folder.new_file(name) as copy:
                copy.write(read_file(path))
        folder.finish()
    return UnpackResult(tuple(out / name for name in files), total, restored, time.perf_counter() - begin)


def _select(files: Mapping[str, PackedFile], shard: str | None, packed: Path) -> Mapping[str, PackedFile]:
    if shard is None:
        return files
    if shard not in files:
        raise UsageError(f"{packed} has no weight file {shard!r}", f"It has: {listed(list(files), 100)}.")
    return {shard: files[shard]}


def _restore(
    name: str, file: PackedFile, folder: PackFolder, pool: ThreadPoolExecutor, tell: Callable[[int], None]
) -> None:
    """Write one original file."""
    files, partial = Files(), folder.partial(name)
    try:
        with partial.open("w+b") as out:
            write_through(out, memoryview(file.original_header))
            tell(len(file.original_header))
            for data in original_bytes(file, files, pool):
                write_through(out, data.data)
                tell(data.nbytes)
            settle(out)
    finally:
        files.close()
    give_name(partial, folder.target(name))


def _side_files(packed: Path) -> dict[str, Path]:
    """All that stands beside the weights by its original name; config.json last."""
    names = {path: INDEX if path.name == ORIGINAL_INDEX else path.name for path in side_files(packed)}
    return {name: path for path, name in names.items() if path.name != INDEX}


def _check_clear(side: Mapping[str, Path], folder: PackFolder) -> None:
    """Raise UsageError where the directory is that of something else."""
    if folder.originals is not None:
        raise UsageError(f"{folder.path} is being packed or pulled, and not finished", "Choose another directory.")
    for name, path in side.items():
        there = folder.path / name
        if there.exists() and read_file(there) != read_file(path):
            _fail_taken(there, path)


def _fail_taken(path: Path, packed: Path) -> NoReturn:
    problem = f"{path} is there already, and is not what {packed} would be unpacked to"
    raise UsageError(problem, "Choose a directory that is not taken, or delete it first.")
