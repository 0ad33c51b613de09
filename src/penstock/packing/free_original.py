"""Deleting an original file whose packed copy was read back from the disk and compared.

In the cache of the Hub's tools a snapshot's files are links into a folder of blobs beside it. There, the blob goes with
its last link. Other links are refused: whoever made them may need what they lead to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.disk.in_order import in_order
from penstock.errors import PenstockError, UsageError
from penstock.packed_format.chunks import RUNS_AHEAD, read_run, runs, same_bytes

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from penstock.compute.kernels import U8
    from penstock.packed_format.chunks import Run
    from penstock.packed_format.reader import PackedFile


def check_may_free(path: Path) -> None:
    """Raise UsageError where `path` is a link that is not one of the Hub's cache."""
    if path.is_symlink() and _blob(path) is None:
        problem = f"{path} is a link to {path.resolve()}, which --replace does not delete"
        raise UsageError(problem, "Give the directory that has the files themselves, or leave --replace out.")


def free_original(path: Path, packed: PackedFile, pool: ThreadPoolExecutor) -> None:
    """Delete `path` if every bit of it comes back from `packed`. Raises PenstockError where it does not."""
    if not is_original(path, packed, pool):
        problem = f"{path} is not what {packed.path} was made from, and is kept"
        raise PenstockError(problem, f"Delete {packed.path} and pack again.")
    blob = _blob(path) if path.is_symlink() else None
    path.unlink()
    if blob is not None and not any(link.resolve() == blob for link in _links(blob)):
        blob.unlink()


def is_original(path: Path, packed: PackedFile, pool: ThreadPoolExecutor) -> bool:
    """Whether `path` is, bit for bit, what `packed` was made from. Raises ReadError, FormatError."""
    if path.stat().st_size != packed.original_size:
        return False
    files = Files()
    try:
        jobs = [partial(_differs, files, run, path) for tensor in packed.tensors.values() for run in runs(tensor)]
        same = _read(files, path, 0, len(packed.original_header)).tobytes() == packed.original_header
        return same and not any(in_order(pool, jobs, RUNS_AHEAD))
    finally:
        files.close()


def _differs(files: Files, run: Run, path: Path) -> bool:
    return not same_bytes(read_run(files, run).original(), _read(files, path, run.original_begin, run.original_nbytes))


def _read(files: Files, path: Path, begin: int, nbytes: int) -> U8:
    return files.read(Extent(path, begin, nbytes), aligned_buffer(nbytes))


def _blob(link: Path) -> Path | None:
    """The file that a link of the Hub's cache leads to: models--OWNER--NAME/{snapshots/REVISION/FILE, blobs/HASH}."""
    blob = link.resolve()
    snapshots = [folder for folder in link.absolute().parents if folder.name == "snapshots"]
    is_blob = blob.parent.name == "blobs" and any(blob.parent.parent == s.parent.resolve() for s in snapshots)
    return blob if is_blob else None


def _links(blob: Path) -> list[Path]:
    """The links in all snapshots beside a blob."""
    return [path for path in (blob.parent.parent / "snapshots").rglob("*") if path.is_symlink()]
